"""Choose score thresholds by F1, on images of the test set."""

from collections.abc import Sequence
from typing import Literal

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset

from ...errors import UserError
from ...evaluation import Detections, LongTailEvaluator, evaluate
from ...evaluation.by_name import by_name
from ...evaluation.predictions import detections_from_instances
from ...evaluation.score_thresholds import ThresholdFit, choose_thresholds
from ..job import Job
from ..testing import build_subset_loader, load_model


def fit_thresholds(
    job: Job, by: Literal["group", "class"] = "group", num_images: int = 500
) -> ThresholdFit:
    """Choose the score thresholds with the highest F1 for a job's checkpoint.

    The images are from its first test set, since a detector scores its training images higher than
    others. Detections are matched with objects at IoU 0.5, by their masks if there are any;
    detections that the metric ignores, e.g. of classes that are not verified in the image, do not
    count. The classes of a group are counted together.

    Args:
        job: the job, set up for evaluation. Its own score thresholds are not applied.
        by: "group", or "class" to choose one for each class too.
        num_images: the number of images, chosen by :func:`apa_det.evaluation.choose_subset`, so
            that rare classes are included.

    Raises:
        UserError: an argument is out of range, there is no test set, the model has no
            post-processing of apa_det, or it detects no object.
    """
    if num_images < 1:
        raise UserError(f"The number of images must be >= 1, got {num_images}.")
    name = job.first_test_dataset()
    if not job.postprocessings():
        raise UserError(
            "The model applies no score thresholds by group: use APAROIHeads, APACascadeROIHeads, "
            "APARetinaNet or APAFCOS."
        )
    model = load_model(job.with_score_thresholds(""))
    evaluator = LongTailEvaluator(
        name, groups=job.groups, count_from=job.count_from, subset=num_images, subset_only=True
    )
    collector = _Collector(evaluator.category_ids)
    loader = build_subset_loader(job, name, evaluator.subset.image_ids)
    inference_on_dataset(model, loader, by_name(collector, name, model))
    detections = Detections.concatenate(collector.parts)
    has_masks = detections.masks is not None and evaluator.subset.has_masks
    iou_type = "segm" if has_masks else "bbox"
    return choose_thresholds(evaluate(evaluator.subset, detections, iou_type, matches=True), by)


class _Collector(DatasetEvaluator):
    """Keeps the detections of a model."""

    def __init__(self, category_ids: Sequence[int]):
        self._category_ids = category_ids
        self.reset()

    def reset(self) -> None:
        self.parts: list[Detections] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for item, output in zip(inputs, outputs, strict=True):
            self.parts.append(
                detections_from_instances(output["instances"], item["image_id"], self._category_ids)
            )

    def evaluate(self) -> dict:
        return {}
