"""The metrics of LongTailEvaluator: LVIS's, and registered extra metrics."""

import inspect
from collections.abc import Sequence

from fvcore.common.registry import Registry

from ..data.frequency import FrequencyGroups
from ..errors import UserError
from .detections import Detections
from .engines import evaluate
from .extras import fixed_ap, pooled_ap
from .ground_truth import GroundTruth
from .result import Evaluation, metric_names

METRIC_REGISTRY = Registry("METRIC")
METRIC_REGISTRY.__doc__ = """
Extra metrics, by the names that ``TEST.EXTRA_METRICS`` lists.

A metric is a callable ``(ground_truth, detections, groups) -> {name: value}``. It is called once
per IoU type with

- ``ground_truth``: the :class:`GroundTruth` of the evaluated images,
- ``detections``: all :class:`Detections` in these images, not limited by ``max_dets``,
- ``groups``: the :class:`FrequencyGroups`; ``ground_truth.category_groups`` indexes their names.

The values enter the results unchanged; NaN means undefined. The names must not depend on the data.

A metric may declare keyword arguments to receive more: ``iou_type``, ``engine``, ``max_dets``, and
``evaluation`` (the :class:`Evaluation` of the IoU type, with ``matches``).
"""


@METRIC_REGISTRY.register()
def AR(
    ground_truth: GroundTruth,
    detections: Detections,
    groups: FrequencyGroups,
    *,
    evaluation: Evaluation,
) -> dict[str, float]:
    """Average recall overall, by object size and by frequency group, in percent."""
    recalls = {name: v for name, v in evaluation.metrics().items() if name.startswith("AR")}
    return _percent({**recalls, **evaluation.group_recall()})


@METRIC_REGISTRY.register()
def fixed(
    ground_truth: GroundTruth,
    detections: Detections,
    groups: FrequencyGroups,
    *,
    iou_type: str,
    engine: str,
) -> dict[str, float]:
    """AP-fixed in percent, see :func:`fixed_ap`."""
    return _percent(fixed_ap(ground_truth, detections, iou_type, engine=engine))


@METRIC_REGISTRY.register()
def pool(
    ground_truth: GroundTruth,
    detections: Detections,
    groups: FrequencyGroups,
    *,
    iou_type: str,
    engine: str,
) -> dict[str, float]:
    """AP-pool in percent, see :func:`pooled_ap`."""
    return _percent(pooled_ap(ground_truth, detections, iou_type, engine=engine))


def _percent(fractions: dict[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in fractions.items()}


def require_extra_metrics(names: Sequence[str]) -> None:
    """Raise a UserError for a name that is neither in METRIC_REGISTRY nor "boundary".

    Args:
        names: as for :class:`LongTailEvaluator`.
    """
    known = [*(name for name, _ in METRIC_REGISTRY), "boundary"]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"extra_metrics must be among {', '.join(known)}; got {', '.join(unknown)}. Fix the "
            "name, or register the metric in apa_det.evaluation.METRIC_REGISTRY."
        )


def compute_metrics(
    ground_truth: GroundTruth,
    detections: Detections,
    iou_type: str,
    extra: Sequence[str] = (),
    *,
    engine: str = "fast",
    max_dets: int | None = 300,
) -> tuple[dict[str, float], Evaluation]:
    """Evaluate detections with LVIS's APs and with extra metrics.

    "boundary" in ``extra`` is skipped: it is an IoU type. The other arguments, and the errors, are
    those of :func:`evaluate`.

    Returns:
        The metrics, APs in percent, and the evaluation that they come from.
    """
    metrics = [METRIC_REGISTRY.get(name) for name in extra if name != "boundary"]
    keywords = [inspect.signature(metric).parameters for metric in metrics]
    options = {"engine": engine, "max_dets": max_dets}
    matches = any("evaluation" in names for names in keywords)
    evaluation = evaluate(ground_truth, detections, iou_type, matches=matches, **options)
    context = {"iou_type": iou_type, "evaluation": evaluation, **options}
    results = _percent({n: v for n, v in evaluation.metrics().items() if n.startswith("AP")})
    for metric, names in zip(metrics, keywords, strict=True):
        arguments = {name: value for name, value in context.items() if name in names}
        results.update(metric(ground_truth, detections, ground_truth.groups, **arguments))
    return results, evaluation


def evaluator_metric_names(
    groups: tuple[str, ...] = ("r", "c", "f"), extra: Sequence[str] = (), max_dets: int = 300
) -> tuple[str, ...]:
    """Return the names of the metrics that :class:`LongTailEvaluator` gives for each IoU type.

    Computes the extra metrics for an image without detections to learn their names.

    Raises:
        UserError: see :func:`require_extra_metrics`.
        MissingPackageError: extra metrics are computed and no evaluation engine is installed.
    """
    require_extra_metrics(extra)
    if not extra:
        return metric_names(groups)
    ids = range(1, len(groups) + 1)
    box = {"bbox": [0, 0, 10, 10], "area": 100}
    truth = GroundTruth(
        {
            "images": [{"id": 1, "height": 10, "width": 10}],
            "categories": [{"id": i, "image_count": 1} for i in ids],
            "annotations": [{"id": i, "image_id": 1, "category_id": i, **box} for i in ids],
        },
        FrequencyGroups.from_mapping(dict(zip(ids, groups, strict=True))),
        everything_verified=True,
    )
    nothing = Detections.concatenate([])
    return tuple(compute_metrics(truth, nothing, "bbox", extra, max_dets=max_dets)[0])
