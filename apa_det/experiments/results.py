"""Collect the results of a comparison, with confidence intervals of the differences."""

import logging
import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..errors import UserError
from ..evaluation import evaluate, read_results
from ..evaluation.evaluator import read_ground_truth
from ..evaluation.resampling import Difference, draw_image_weights, resampled_ap
from ..utils.json_files import read_json
from ..utils.progress import track
from .damage import find_damage
from .plan import Plan, Run

logger = logging.getLogger(__name__)

_LOADING = ("DATALOADER.", "INPUT.", "dataloader.train.")  # keys that change the training images
_TOLERANCE = 1e-6  # between AP in percent in result.json and recomputed


UNDEFINED = Difference(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Results:
    """The results of the finished runs. AP is in percent, NaN if undefined.

    Attributes:
        plan: the comparison.
        results: the content of ``result.json`` by row and seed, of the finished runs.
        iou_types: those evaluated, of "bbox" and "segm".
        metrics: AP and the APs of the frequency groups.
        differences: by row (except the first), IoU type and metric: the row's mean minus that of
            the first row, over the seeds that both have.
        num_images: number of test images.
        num_resamples: number of bootstrap resamples.
    """

    plan: Plan
    results: dict[str, dict[int, dict]]
    iou_types: tuple[str, ...]
    metrics: tuple[str, ...]
    differences: dict[tuple[str, str, str], Difference]
    num_images: int
    num_resamples: int

    def values(self, row: str, iou_type: str, metric: str) -> dict[int, float]:
        """Return the metric of each seed."""
        values = {}
        for seed, result in self.results[row].items():
            value = result["metrics"].get(f"{iou_type}/{metric}")
            values[seed] = math.nan if value is None else value
        return values

    def mean(self, row: str, iou_type: str, metric: str) -> float:
        """Return the mean of the metric over seeds."""
        return _mean(list(self.values(row, iou_type, metric).values()))

    def costs(self, row: str, key: str) -> dict[int, float]:
        """Return the ``seconds_per_iteration`` or ``peak_memory_mb`` of each seed that trained."""
        values = {seed: result[key] for seed, result in self.results[row].items()}
        return {seed: value for seed, value in values.items() if value is not None}

    def notes(self) -> list[str]:
        """Return notes for the reader of the table, e.g. on missing runs."""
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
                f"One seed: the intervals of {which} do not include the variance between seeds."
            )
        notes += self._notes_on_intervals() + self._notes_on_images()
        versions = [r["versions"] for results in self.results.values() for r in results.values()]
        for key in versions[0] if versions else ():
            values = sorted({version[key] for version in versions})
            if len(values) > 1:
                notes.append(f"The runs had different {key}: {' and '.join(values)}.")
        return notes

    def _notes_on_intervals(self) -> list[str]:
        defined = {k: d for k, d in self.differences.items() if not math.isnan(d.low)}
        notes = []
        for iou_type, metric in product(self.iou_types, self.metrics):
            rows = [
                row
                for (row, *of), difference in defined.items()
                if of == [iou_type, metric] and not difference.is_clear
            ]
            if rows:
                which = f"The interval of Δ{metric} ({iou_type})"
                notes.append(f"{which} includes 0: {'; '.join(rows)}.")
        if len(defined) > 1:
            by_chance = 0.05 * len(defined)  # of 95 % intervals
            notes.append(
                f"The {len(defined)} intervals are not corrected for multiple comparisons: if no "
                f"row differed from the first one, about {by_chance:.1f} would still exclude 0."
            )
        return notes

    def _notes_on_images(self) -> list[str]:
        first = self.plan.rows[0].name
        rows_by_reason: dict[str, list[str]] = {}
        for name, keys in self.plan.differences().items():
            pairs = [
                (self.results[first][seed].get("image_digest"), result.get("image_digest"))
                for seed, result in self.results[name].items()
                if seed in self.results[first]
            ]
            if any(a and b and a != b for a, b in pairs):
                reasons = [key for key in keys if key.startswith(_LOADING)]
                why = f"they differ in {', '.join(reasons)}" if reasons else "the reason is unknown"
                rows_by_reason.setdefault(why, []).append(name)
        return [
            f"Not trained on the same images as {first} ({why}): {'; '.join(names)}."
            for why, names in rows_by_reason.items()
        ]


def gather(plan: Plan, num_resamples: int = 1000, seed: int = 0) -> Results:
    """Read the results of the finished runs, and compare each row with the first one.

    The intervals are percentiles of paired bootstrap resamples. Each resample draws the test images
    with replacement, the same ones for all rows, and recomputes AP; and it draws n - 1 of the n
    seeds with replacement, which gives their mean the variance of a mean of n (McCarthy and
    Snowden, "The bootstrap and finite population sampling", 1985). With both drawn, variance that
    images and seeds share counts more than once: the intervals are too wide rather than too narrow
    (Owen, "The pigeonhole bootstrap", 2007).

    Args:
        plan: a checked plan.
        num_resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        UserError: no run is done yet, or a result does not match its predictions.
    """
    results: dict[str, dict[int, dict]] = {row.name: {} for row in plan.rows}
    done = []
    for run in filter(lambda run: run.is_done, plan.runs):
        if damage := find_damage(run):
            logger.warning("%s The run is left out.", damage)
        else:
            done.append(run)
    if not done:
        raise UserError(f"No run of the comparison in {plan.output_dir} is finished yet.")
    for run in done:
        results[run.row][run.seed] = read_json(run.result_file)
    job = plan.rows[0].job
    name = job.test_datasets[0]
    truth = read_ground_truth(name, job.groups, job.count_from)
    metrics = ("AP", *(f"AP{name}" for name in truth.groups.names))
    names = {name for run in done for name in results[run.row][run.seed]["metrics"]}
    iou_types = tuple(iou_type for iou_type in ("bbox", "segm") if f"{iou_type}/AP" in names)
    weights = draw_image_weights(len(truth.image_ids), num_resamples, seed)
    weights = np.concatenate([np.ones_like(weights[:1]), weights])  # first, without resampling
    resampled: dict[tuple[str, int, str], dict[str, np.ndarray]] = {}
    for run in track(done, "Resampling the results", "runs"):
        detections = read_results(run.predictions_file, truth)
        for iou_type in iou_types:
            if f"{iou_type}/AP" not in results[run.row][run.seed]["metrics"]:
                continue
            evaluation = evaluate(truth, detections, iou_type, engine=job.engine, matches=True)
            aps = resampled_ap(evaluation, weights)
            _require_same(run, iou_type, results[run.row][run.seed]["metrics"], aps)
            resampled[run.row, run.seed, iou_type] = {
                name: 100 * values[1:] for name, values in aps.items()
            }
    gathered = Results(plan, results, iou_types, metrics, {}, len(truth.image_ids), num_resamples)
    for row, iou_type, metric in product(plan.rows[1:], iou_types, metrics):
        key = (row.name, iou_type, metric)
        gathered.differences[key] = _difference(gathered, resampled, *key, seed)
    return gathered


def _require_same(run: Run, iou_type: str, metrics: dict, aps: dict[str, np.ndarray]) -> None:
    for name, (ap, *_) in aps.items():
        value = metrics[f"{iou_type}/{name}"]
        if not np.allclose(100 * ap, math.nan if value is None else value, 0, _TOLERANCE, True):
            raise UserError(
                f"{run.result_file} does not match {run.predictions_file}: {iou_type}/{name} is "
                f"{value} in the former, but {100 * ap:.4f} by the latter. One of the files or the "
                f"test set has changed: delete {run.result_file}, and run the comparison again."
            )


def _difference(
    gathered: Results, resampled: dict, row: str, iou_type: str, metric: str, seed: int
) -> Difference:
    first = gathered.plan.rows[0].name
    seeds = [
        s
        for s in gathered.plan.seeds
        if (first, s, iou_type) in resampled and (row, s, iou_type) in resampled
    ]
    if not seeds:
        return UNDEFINED
    ours, theirs = (gathered.values(name, iou_type, metric) for name in (row, first))
    mean = _mean([ours[s] - theirs[s] for s in seeds])
    differences = np.stack(
        [resampled[row, s, iou_type][metric] - resampled[first, s, iou_type][metric] for s in seeds]
    )  # (seeds, resamples)
    drawn = np.random.default_rng(seed).integers(
        len(seeds), size=(max(1, len(seeds) - 1), differences.shape[1])
    )
    means = np.take_along_axis(differences, drawn, axis=0).mean(0)
    return Difference.from_resamples(mean, means)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan
