"""The results of a comparison in words: tables for people, and files for programs."""

import csv
import io
import math
import os
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from tabulate import tabulate

from ..utils.json_files import write_json
from .results import UNDEFINED, Difference, Results

__all__ = ["TASKS", "format_difference", "format_tables", "write_tables"]

TASKS = {"bbox": "boxes", "segm": "masks"}
_COSTS = {"seconds_per_iteration": 1000, "peak_memory_mb": 1}  # with the factor in the table


def write_tables(results: Results, output_dir: str) -> str:
    """Write ``table.md``, ``results.csv`` and ``results.json``.

    Returns:
        The text of ``table.md``.
    """
    os.makedirs(output_dir, exist_ok=True)
    text = format_tables(results)
    _write(text, os.path.join(output_dir, "table.md"))
    _write(_csv(results), os.path.join(output_dir, "results.csv"))
    write_json(_without_nan(_content(results)), os.path.join(output_dir, "results.json"))
    return text


def format_tables(results: Results) -> str:
    """Markdown: a table for each task, one of the costs, the notes, and what the rows change."""
    first = results.plan.rows[0].name
    parts = [
        f"Mean ± standard deviation over {_listed(results.plan.seeds)}; Δ is the "
        f"difference to {first}, with the 95 % interval of {results.num_resamples:,} bootstrap "
        f"resamples of the {results.num_pictures:,} test pictures and of the seeds. An iteration's "
        "time is the median, without the reading of pictures; memory is the most in training."
    ]
    parts += [_task_table(results, task) for task in results.tasks]
    parts.append(_cost_table(results))
    parts += results.notes()
    parts.append(_changes(results))
    return "\n\n".join(part for part in parts if part) + "\n"


def _task_table(results: Results, task: str) -> str:
    headers = [TASKS[task]]
    for metric in results.metrics:
        headers += [metric, f"Δ{metric}"]
    lines = []
    for row in results.plan.rows:
        cells = []
        for metric in results.metrics:
            cells.append(_mean_and_spread(list(results.values(row.name, task, metric).values())))
            difference = results.differences.get((row.name, task, metric))
            cells.append("" if difference is None else format_difference(difference))
        lines.append([row.name, *cells])
    return _markdown(lines, headers)


def _cost_table(results: Results) -> str:
    headers = ["training", "ms per iteration", "ratio", "peak memory, MB", "ratio", "seeds"]
    first = results.plan.rows[0].name
    lines = []
    for row in results.plan.rows:
        cells = []
        for key, factor in _COSTS.items():
            values = [factor * value for value in results.costs(row.name, key)]
            ratio = _mean(values) / factor / _mean(results.costs(first, key))
            cells += [_mean_and_spread(values, 0), _number(ratio, 2)]
        done = f"{len(results.results[row.name])} of {len(results.plan.seeds)}"
        lines.append([row.name, *cells, done])
    return _markdown(lines, headers)


def _changes(results: Results) -> str:
    """The keys that rows set, at the first row with its own values of all of them."""
    changes = results.plan.differences()
    if not changes:
        return ""
    first: dict[str, object] = {}
    for keys in changes.values():
        first.update({key: theirs for key, (theirs, _) in keys.items()})
    rows = {results.plan.rows[0].name: first}
    rows |= {name: {key: own for key, (_, own) in keys.items()} for name, keys in changes.items()}
    lines = []
    for name, keys in rows.items():
        listed = ", ".join(f"`{key} {value}`" for key, value in keys.items())
        lines.append(f"- {name}: {listed or 'nothing'}")
    return "\n".join(["What the rows change in the first one, and what that has:", "", *lines])


def _content(results: Results) -> dict:
    return {
        "numbers": list(_records(results)),
        "runs": results.results,
        "seeds": results.plan.seeds,
        "pictures": results.num_pictures,
        "resamples": results.num_resamples,
        "notes": results.notes(),
        "changes": results.plan.differences(),
    }


def _csv(results: Results) -> str:
    file = io.StringIO()
    writer = None
    for record in _records(results):
        of_seeds = record.pop("seeds")
        record |= {f"seed{seed}": of_seeds.get(seed, math.nan) for seed in results.plan.seeds}
        if writer is None:
            writer = csv.DictWriter(file, record, lineterminator="\n")
            writer.writeheader()
        writer.writerow({key: "" if value != value else value for key, value in record.items()})
    return file.getvalue()


def _records(results: Results) -> Iterator[dict]:
    """For each row and number: mean, std, the difference with its interval, and all seeds."""
    for row in results.plan.rows:
        for task in results.tasks:
            for metric in results.metrics:
                values = results.values(row.name, task, metric)
                yield {
                    **_record(row.name, task, metric, values),
                    **asdict(results.differences.get((row.name, task, metric), UNDEFINED)),
                    "seeds": values,
                }
        for key in _COSTS:
            values = {seed: result[key] for seed, result in results.results[row.name].items()}
            yield {**_record(row.name, "", key, values), **asdict(UNDEFINED), "seeds": values}


def _record(row: str, task: str, metric: str, values: dict[int, float]) -> dict:
    numbers = list(values.values())
    mean, std = _mean(numbers), _spread(numbers)
    return {"row": row, "task": task, "metric": metric, "mean": mean, "std": std}


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _spread(values: list[float]) -> float:
    """The standard deviation of a sample."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _mean_and_spread(values: list[float], digits: int = 1) -> str:
    spread = _spread(values)
    text = _number(_mean(values), digits)
    return text if math.isnan(spread) else f"{text} ± {_number(spread, digits)}"


def format_difference(difference: Difference) -> str:
    """ "+1.2 [+0.3, +2.1]"; "–" where undefined."""
    if math.isnan(difference.difference):
        return "–"
    text = _signed(difference.difference)
    if math.isnan(difference.low):
        return text
    return f"{text} [{_signed(difference.low)}, {_signed(difference.high)}]"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # no -0.0


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"


def _listed(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _markdown(lines: list[list[str]], headers: list[str]) -> str:
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(lines, headers, tablefmt="github", colalign=align, disable_numparse=True)


def _write(text: str, path: str) -> None:
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{path}.partial", path)


def _without_nan(content):
    """The same with None for NaN, which is no JSON."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
