"""The results of a comparison in words: tables for people, and files for programs."""

import csv
import io
import math
import os
from dataclasses import asdict

import numpy as np
from tabulate import tabulate

from ..data.json_files import write_json
from .results import Difference, Results

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
            of_row = results.differences.get(row.name)
            cells.append(format_difference(of_row[task][metric]) if of_row else "")
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
    rows = []
    for row in results.plan.rows:
        tasks = {}
        for task in results.tasks:
            tasks[task] = {}
            for metric in results.metrics:
                values = results.values(row.name, task, metric)
                of_row = results.differences.get(row.name)
                tasks[task][metric] = {
                    "mean": _mean(list(values.values())),
                    "std": _spread(list(values.values())),
                    "seeds": {str(seed): value for seed, value in values.items()},
                    "difference": asdict(of_row[task][metric]) if of_row else None,
                }
        costs = {key: _mean(results.costs(row.name, key)) for key in _COSTS}
        runs = {str(seed): result for seed, result in results.results[row.name].items()}
        rows.append({"name": row.name, **tasks, **costs, "runs": runs})
    return {
        "rows": rows,
        "seeds": results.plan.seeds,
        "pictures": results.num_pictures,
        "resamples": results.num_resamples,
        "notes": results.notes(),
        "changes": results.plan.differences(),
    }


def _csv(results: Results) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["row", "task", "metric", "mean", "std", "difference", "low", "high", "seeds"]
        + [f"seed{seed}" for seed in results.plan.seeds]
    )
    for row in results.plan.rows:
        for task in results.tasks:
            for metric in results.metrics:
                values = results.values(row.name, task, metric)
                numbers = list(values.values())
                of_row = results.differences.get(row.name)
                difference = of_row[task][metric] if of_row else Difference(*[math.nan] * 3)
                cells = [_mean(numbers), _spread(numbers), *asdict(difference).values()]
                seeds = [values.get(seed, math.nan) for seed in results.plan.seeds]
                cells = [*cells, len(numbers), *seeds]
                writer.writerow([row.name, task, metric, *map(_plain, cells)])
        for key in _COSTS:
            by_seed = {seed: result[key] for seed, result in results.results[row.name].items()}
            numbers = list(by_seed.values())
            cells = [_mean(numbers), _spread(numbers), *[math.nan] * 3, len(numbers)]
            cells += [by_seed.get(seed, math.nan) for seed in results.plan.seeds]
            writer.writerow([row.name, "", key, *map(_plain, cells)])
    return file.getvalue()


def _plain(value: float) -> str | float:
    return "" if math.isnan(value) else value


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
    if math.isnan(difference.mean):
        return "–"
    text = _signed(difference.mean)
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
