"""What the runs of a comparison reached, and how sure the differences between rows are."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..evaluation import evaluate, read_results
from ..evaluation.evaluator import read_ground_truth
from ..evaluation.resampling import draw_image_weights, resampled_ap
from ..utils.json_files import read_json
from .plan import Plan, Run

__all__ = ["Difference", "Results", "gather"]

logger = logging.getLogger(__name__)

_LEVEL = 95  # percent
_TOLERANCE = 1e-6  # between AP in percent as evaluated, and as computed anew


@dataclass(frozen=True)
class Difference:
    """Of a row to the first one, over the seeds that both have."""

    difference: float
    low: float  # of the bootstrap interval of 95 %
    high: float


UNDEFINED = Difference(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Results:
    """What a comparison has reached so far. AP is in percent, NaN where undefined.

    Attributes:
        plan: what was compared.
        results: by row and seed, the content of ``result.json``; without runs that are not done.
        tasks: of "bbox" and "segm".
        metrics: AP and those of the frequency groups.
        differences: by row but the first, task and metric.
        num_pictures: in the test set.
        num_resamples: of the bootstrap.
    """

    plan: Plan
    results: dict[str, dict[int, dict]]
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    differences: dict[tuple[str, str, str], Difference]
    num_pictures: int
    num_resamples: int

    def values(self, row: str, task: str, metric: str) -> dict[int, float]:
        """The metric of each seed."""
        values = {}
        for seed, result in self.results[row].items():
            value = result["metrics"].get(f"{task}/{metric}")
            values[seed] = math.nan if value is None else value
        return values

    def mean(self, row: str, task: str, metric: str) -> float:
        """The mean of the metric over seeds."""
        return _mean(list(self.values(row, task, metric).values()))

    def costs(self, row: str, key: str) -> list[float]:
        """The ``seconds_per_iteration`` or ``peak_memory_mb`` of each seed."""
        return [result[key] for result in self.results[row].values()]

    def notes(self) -> list[str]:
        """What a reader of the table has to know."""
        missing = []
        for row in self.plan.rows:
            seeds = [str(s) for s in self.plan.seeds if s not in self.results[row.name]]
            missing += [f"{row.name} (seed {', '.join(seeds)})"] if seeds else []
        notes = [f"Missing: {'; '.join(missing)}."] if missing else []
        first, *others = [row.name for row in self.plan.rows]
        once = [n for n in others if len(self.results[first].keys() & self.results[n].keys()) == 1]
        if once:
            which = "all rows" if once == others else ", ".join(once)
            notes.append(
                f"One seed: the intervals of {which} do not hold what another seed would change."
            )
        notes += self._other_pictures()
        versions = [r["versions"] for results in self.results.values() for r in results.values()]
        for key in versions[0] if versions else ():
            found = sorted({version[key] for version in versions})
            if len(found) > 1:
                notes.append(f"The runs had different {key}: {' and '.join(found)}.")
        return notes

    def _other_pictures(self) -> list[str]:
        first = self.plan.rows[0].name
        rows_by_reason: dict[str, list[str]] = {}
        for name, keys in self.plan.differences().items():
            pairs = [
                (self.results[first][seed].get("pictures"), result.get("pictures"))
                for seed, result in self.results[name].items()
                if seed in self.results[first]
            ]
            if any(theirs and own and theirs != own for theirs, own in pairs):
                reasons = [key for key in keys if key.startswith(("DATALOADER.", "INPUT."))]
                why = f"they differ in {', '.join(reasons)}" if reasons else "the reason is unknown"
                rows_by_reason.setdefault(why, []).append(name)
        return [
            f"Not trained on the pictures of {first} ({why}): {'; '.join(names)}."
            for why, names in rows_by_reason.items()
        ]


def gather(plan: Plan, num_resamples: int = 1000, seed: int = 0) -> Results:
    """Read what is done, and hold each row against the first one.

    The intervals are percentiles of paired bootstrap resamples. Each draws the pictures of the test
    set with replacement, the same for all rows, and computes AP anew; and it draws n - 1 of the n
    seeds with replacement, which gives their mean the variance of a mean of n (McCarthy and
    Snowden, "The bootstrap and finite population sampling", 1985). As both are drawn, what varies
    from picture to picture and from seed to seed alike counts more than once: the intervals are
    rather too wide than too narrow (Owen, "The pigeonhole bootstrap", 2007).

    Args:
        plan: checked.
        num_resamples: of the bootstrap.
        seed: of its draws.

    Raises:
        ValueError: nothing is done yet, or a result and its predictions do not belong together.
    """
    results: dict[str, dict[int, dict]] = {row.name: {} for row in plan.rows}
    done = [run for run in plan.runs if run.is_done]
    if not done:
        raise UserError(f"No run of the comparison in {plan.output_dir} is done yet.")
    for run in done:
        results[run.row][run.seed] = read_json(run.result_file)
    job = plan.rows[0].job
    name = job.test_datasets[0]
    truth = read_ground_truth(name, job.groups, job.count_from)
    metrics = ("AP", *(f"AP{name}" for name in truth.groups.names))
    named = {name for run in done for name in results[run.row][run.seed]["metrics"]}
    tasks = tuple(task for task in ("bbox", "segm") if f"{task}/AP" in named)
    weights = draw_image_weights(len(truth.image_ids), num_resamples, seed)
    weights = np.concatenate([np.ones_like(weights[:1]), weights])  # as they are, first
    resampled: dict[tuple[str, int, str], dict[str, np.ndarray]] = {}
    for run in tqdm(done, desc="Bootstrap", unit="run", disable=None):
        detections = read_results(run.predictions_file, truth)
        for task in tasks:
            if f"{task}/AP" not in results[run.row][run.seed]["metrics"]:
                continue
            evaluation = evaluate(truth, detections, task, engine=job.engine, matches=True)
            aps = resampled_ap(evaluation, weights)
            _require_same(run, task, results[run.row][run.seed]["metrics"], aps)
            resampled[run.row, run.seed, task] = {
                name: 100 * values[1:] for name, values in aps.items()
            }
    found = Results(plan, results, tasks, metrics, {}, len(truth.image_ids), num_resamples)
    for row, task, metric in _compared(found):
        difference = _difference(found, resampled, row, task, metric, seed)
        found.differences[row, task, metric] = difference
    return found


def _require_same(run: Run, task: str, metrics: dict, aps: dict[str, np.ndarray]) -> None:
    for name, (again, *_) in aps.items():
        value = metrics[f"{task}/{name}"]
        if not np.allclose(100 * again, math.nan if value is None else value, 0, _TOLERANCE, True):
            raise UserError(
                f"{run.predictions_file} gives {task}/{name} {100 * again:.4f}, and "
                f"{run.result_file} says {value}: they do not belong together, or the test set "
                f"has changed. Delete {run.result_file}, and run the comparison again."
            )


def _compared(found: Results) -> Iterator[tuple[str, str, str]]:
    for row in found.plan.rows[1:]:
        for task in found.tasks:
            for metric in found.metrics:
                yield row.name, task, metric


def _difference(
    found: Results, resampled: dict, row: str, task: str, metric: str, seed: int
) -> Difference:
    first = found.plan.rows[0].name
    seeds = [
        s for s in found.plan.seeds if (first, s, task) in resampled and (row, s, task) in resampled
    ]
    if not seeds:
        return UNDEFINED
    theirs, own = (found.values(name, task, metric) for name in (first, row))
    mean = _mean([own[s] - theirs[s] for s in seeds])
    each = np.stack(
        [resampled[row, s, task][metric] - resampled[first, s, task][metric] for s in seeds]
    )  # (seeds, resamples)
    drawn = np.random.default_rng(seed).integers(
        len(seeds), size=(max(1, len(seeds) - 1), each.shape[1])
    )
    means = np.take_along_axis(each, drawn, axis=0).mean(0)
    means = means[~np.isnan(means)]
    if not len(means):
        return Difference(mean, math.nan, math.nan)
    margin = (100 - _LEVEL) / 2
    return Difference(mean, *np.percentile(means, [margin, 100 - margin]).tolist())


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
