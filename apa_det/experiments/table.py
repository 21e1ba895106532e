"""Write the results of a comparison as a Markdown table, CSV and JSON."""

import io
import math
import os
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from tabulate import tabulate

from ..evaluation.comparison import format_difference
from ..text import write_csv
from ..utils.atomic_files import open_atomic
from ..utils.json_files import write_json
from .results import UNDEFINED, Results

IOU_TYPE_NAMES = {"bbox": "boxes", "segm": "masks"}
_COSTS = {"seconds_per_iteration": 1000, "peak_memory_mb": 1}  # factor of the unit in the table


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
    """Return Markdown: a table per IoU type, the costs, notes, and what each row changes."""
    first = results.plan.rows[0].name
    parts = [
        f"Mean ± standard deviation over {_listed(results.plan.seeds)}; Δ is the "
        f"difference to {first}, with the 95 % interval of {results.num_resamples:,} bootstrap "
        f"resamples of the {results.num_images:,} test images and of the seeds. The time per "
        "iteration is the median, without image loading; memory is the peak in training."
    ]
    parts += [_ap_table(results, iou_type) for iou_type in results.iou_types]
    parts.append(_cost_table(results))
    parts += results.notes()
    parts.append(_changes(results))
    return "\n\n".join(part for part in parts if part) + "\n"


def _ap_table(results: Results, iou_type: str) -> str:
    headers = [IOU_TYPE_NAMES[iou_type]]
    for metric in results.metrics:
        headers += [metric, f"Δ{metric}"]
    lines = []
    for row in results.plan.rows:
        cells = []
        for metric in results.metrics:
            values = results.values(row.name, iou_type, metric)
            cells.append(_mean_and_spread(list(values.values())))
            difference = results.differences.get((row.name, iou_type, metric))
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
            values = [factor * value for value in results.costs(row.name, key).values()]
            ratio = _mean(values) / factor / _mean([*results.costs(first, key).values()])
            cells += [_mean_and_spread(values, 0), _number(ratio, 2)]
        done = f"{len(results.results[row.name])} of {len(results.plan.seeds)}"
        lines.append([row.name, *cells, done])
    return _markdown(lines, headers)


def _changes(results: Results) -> str:
    """List the keys in which rows differ from the first one, with their values in each row."""
    changes = results.plan.differences()
    if not changes:
        return ""
    first: dict[str, object] = {}
    for keys in changes.values():
        first.update({key: value for key, (value, _) in keys.items()})
    rows = {results.plan.rows[0].name: first}
    rows |= {
        name: {key: value for key, (_, value) in keys.items()} for name, keys in changes.items()
    }
    lines = []
    for name, keys in rows.items():
        listed = ", ".join(f"`{key} {value}`" for key, value in keys.items())
        lines.append(f"- {name}: {listed or 'nothing'}")
    return "\n".join(["Settings in which the rows differ from the first one:", "", *lines])


def _content(results: Results) -> dict:
    return {
        "numbers": list(_records(results)),
        "runs": results.results,
        "seeds": results.plan.seeds,
        "images": results.num_images,
        "resamples": results.num_resamples,
        "notes": results.notes(),
        "changes": results.plan.differences(),
    }


def _csv(results: Results) -> str:
    rows = []
    for record in _records(results):
        values = record.pop("seeds")
        record |= {f"seed{seed}": values.get(seed, math.nan) for seed in results.plan.seeds}
        rows.append({key: "" if value != value else value for key, value in record.items()})
    file = io.StringIO()
    if rows:
        write_csv(file, list(rows[0]), (row.values() for row in rows), lineterminator="\n")
    return file.getvalue()


def _records(results: Results) -> Iterator[dict]:
    """Yield, per row and metric: mean, std, the difference with its interval, and all seeds."""
    for row in results.plan.rows:
        for iou_type in results.iou_types:
            for metric in results.metrics:
                values = results.values(row.name, iou_type, metric)
                yield {
                    **_record(row.name, iou_type, metric, values),
                    **asdict(results.differences.get((row.name, iou_type, metric), UNDEFINED)),
                    "seeds": values,
                }
        for key in _COSTS:
            values = results.costs(row.name, key)
            yield {**_record(row.name, "", key, values), **asdict(UNDEFINED), "seeds": values}


def _record(row: str, iou_type: str, metric: str, values: dict[int, float]) -> dict:
    numbers = list(values.values())
    mean, std = _mean(numbers), _spread(numbers)
    return {"row": row, "iou_type": iou_type, "metric": metric, "mean": mean, "std": std}


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _spread(values: list[float]) -> float:
    """Return the sample standard deviation."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _mean_and_spread(values: list[float], digits: int = 1) -> str:
    spread = _spread(values)
    text = _number(_mean(values), digits)
    return text if math.isnan(spread) else f"{text} ± {_number(spread, digits)}"


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"


def _listed(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _markdown(lines: list[list[str]], headers: list[str]) -> str:
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(lines, headers, tablefmt="github", colalign=align, disable_numparse=True)


def _write(text: str, path: str) -> None:
    with open_atomic(path) as file:
        file.write(text)


def _without_nan(content):
    """Replace NaN, which JSON does not have, by None."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
