"""From scored boxes to detections: thresholds by class, NMS and soft-NMS."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..data.class_thresholds import class_info, class_thresholds
from ..data.frequency import FrequencyGroups
from ..errors import UserError
from .nms import SOFT_NMS, soft_nms

ARGUMENTS = (
    "soft_nms",
    "soft_nms_sigma",
    "class_agnostic_nms",
    "score_thresh_per_group",
    "score_thresh_datasets",
    "score_thresh_groups",
    "score_thresh_count_from",
)
"""The arguments of :class:`PostProcessing` that box predictors and dense detectors take too."""


class PostProcessing:
    """Chooses the detections among the scored boxes of an image.

    With the defaults, it is detectron2's: boxes above one score threshold go through the NMS of
    their class.

    Attributes:
        class_names: those of the model, if they are known. The thresholds then go by name.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        soft_nms: str = "",
        soft_nms_sigma: float = 0.5,
        class_agnostic_nms: bool = False,
        score_thresh_per_group: str = "",
        score_thresh_datasets: str | Sequence[str] = (),
        score_thresh_groups: str | FrequencyGroups = "",
        score_thresh_count_from: str = "",
    ):
        """
        Args:
            num_classes: K.
            soft_nms: "linear" or "gaussian" soft-NMS instead of NMS, see
                :func:`apa_det.modeling.soft_nms`. Boxes whose new score does not exceed
                the score threshold are dropped. "": NMS.
            soft_nms_sigma: σ of "gaussian".
            class_agnostic_nms: boxes also suppress boxes of other classes.
            score_thresh_per_group: score thresholds by frequency group, or by class in a JSON file;
                see :func:`apa_det.data.class_thresholds.class_thresholds`. They replace the common
                threshold. Classes that a file omits keep it. "": none.
            score_thresh_datasets: registered datasets; the first one that can be read defines the
                groups of the classes. It is first needed in inference.
            score_thresh_groups: the frequency groups, or their text as in
                ``TEST.FREQUENCY_GROUPS``. "": those of the dataset.
            score_thresh_count_from: a registered dataset that gives the image counts. "": the one
                of ``score_thresh_datasets``.

        Raises:
            UserError: a name is unknown, a value is out of range, or thresholds have no dataset.
        """
        if soft_nms not in ("", *SOFT_NMS):
            raise UserError(
                f"TEST.SOFT_NMS.METHOD must be {', '.join(SOFT_NMS)} or empty; got {soft_nms!r}."
            )
        if not soft_nms_sigma > 0:
            raise UserError(f"TEST.SOFT_NMS.SIGMA must be > 0, got {soft_nms_sigma}.")
        self.num_classes = num_classes
        self.soft_nms, self.sigma = soft_nms, soft_nms_sigma
        self.class_agnostic_nms = class_agnostic_nms
        self.score_thresh_per_group = score_thresh_per_group
        is_one = isinstance(score_thresh_datasets, str)
        self.datasets = [score_thresh_datasets] if is_one else list(score_thresh_datasets)
        if score_thresh_per_group and not self.datasets:
            raise UserError(
                "TEST.SCORE_THRESH_PER_GROUP needs the classes of DATASETS.TRAIN or DATASETS.TEST "
                "(score_thresh_datasets in a LazyConfig): set one of them."
            )
        self.groups, self.count_from = score_thresh_groups, score_thresh_count_from
        self.class_names: list[str] | None = None
        self._thresholds: tuple[float, Tensor] | None = None  # and the common one

    @property
    def is_active(self) -> bool:
        """Whether it differs from detectron2's."""
        return bool(self.soft_nms or self.class_agnostic_nms or self.score_thresh_per_group)

    def thresholds(self, common: float, device: torch.device | str = "cpu") -> Tensor | float:
        """Return the score threshold of each class, float32, (K,); or the common one for all.

        Raises:
            UserError: the thresholds are not valid, or the groups of the classes are unknown.
        """
        if not self.score_thresh_per_group:
            return common
        if self._thresholds is None or self._thresholds[0] != common:
            groups = self.groups
            groups = FrequencyGroups.parse(groups) if groups and isinstance(groups, str) else groups
            classes = class_info(
                self.datasets,
                self.num_classes,
                groups or None,
                self.count_from or None,
                self.class_names,
            )
            values = class_thresholds(self.score_thresh_per_group, classes, common)
            self._thresholds = common, torch.from_numpy(values.astype(np.float32))
        self._thresholds = common, self._thresholds[1].to(device)
        return self._thresholds[1]

    def set_class_names(self, names: Sequence[str] | None) -> None:
        """Set ``class_names``."""
        self.class_names = None if names is None else list(names)
        self._thresholds = None

    def suppress(
        self,
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor,
        nms_thresh: float,
        score_thresh: float,
        max_detections: int,
    ) -> tuple[Tensor, Tensor]:
        """Apply NMS or soft-NMS to the boxes of an image that are above their thresholds.

        Args:
            boxes: shape (N, 4).
            scores, classes: shape (N,).
            nms_thresh: IoU threshold.
            score_thresh: the common score threshold.
            max_detections: the largest number of detections; negative: any.

        Returns:
            Indices of the kept boxes, in descending order of their scores; and these scores.
        """
        rows = torch.zeros_like(classes) if self.class_agnostic_nms else classes
        if not self.soft_nms:
            kept = batched_nms(boxes, scores, rows, nms_thresh)
            kept = kept if max_detections < 0 else kept[:max_detections]
            return kept, scores[kept]
        kept, scores = soft_nms(
            boxes, scores, rows, self.soft_nms, nms_thresh, self.sigma, max_detections
        )
        above = self.above(scores, classes[kept], score_thresh)
        return kept[above], scores[above]

    def above(self, scores: Tensor, classes: Tensor, score_thresh: float) -> Tensor:
        """Return which scores exceed the thresholds of their classes, bool, (N,)."""
        thresholds = self.thresholds(score_thresh, scores.device)
        return scores > (thresholds[classes] if isinstance(thresholds, Tensor) else thresholds)

    def select(
        self,
        boxes: Sequence[Tensor],
        scores: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        score_thresh: float,
        nms_thresh: float,
        max_detections: int,
    ) -> tuple[list[Instances], list[Tensor]]:
        """As detectron2's ``fast_rcnn_inference``.

        Raises:
            UserError: see :meth:`thresholds`.
        """
        thresholds = self.thresholds(score_thresh, scores[0].device) if scores else score_thresh
        if not self.soft_nms and not self.class_agnostic_nms:
            return fast_rcnn_inference(
                boxes, scores, image_sizes, thresholds, nms_thresh, max_detections
            )
        results = []
        for image_boxes, image_scores, size in zip(boxes, scores, image_sizes, strict=True):
            finite = image_boxes.isfinite().all(dim=1) & image_scores.isfinite().all(dim=1)
            rows, classes = torch.where((image_scores[:, :-1] > thresholds) & finite[:, None])
            columns = classes if image_boxes.shape[1] > 4 else torch.zeros_like(classes)
            chosen = Boxes(image_boxes.view(len(image_boxes), -1, 4)[rows, columns])
            chosen.clip(size)
            kept, new_scores = self.suppress(
                chosen.tensor,
                image_scores[rows, classes],
                classes,
                nms_thresh,
                score_thresh,
                max_detections,
            )
            instances = Instances(size, pred_boxes=chosen[kept], scores=new_scores)
            instances.pred_classes = classes[kept]
            results.append((instances, rows[kept]))
        return [r for r, _ in results], [kept for _, kept in results]


def postprocessing_arguments(cfg: CfgNode) -> dict[str, object]:
    """Return the :data:`ARGUMENTS` that the keys ``TEST.*`` of a config set."""
    test = cfg.TEST
    per_group = test.SCORE_THRESH_PER_GROUP
    return {
        "soft_nms": test.SOFT_NMS.METHOD,
        "soft_nms_sigma": test.SOFT_NMS.SIGMA,
        "class_agnostic_nms": test.CLASS_AGNOSTIC_NMS,
        "score_thresh_per_group": per_group,
        "score_thresh_datasets": (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if per_group else (),
        "score_thresh_groups": test.FREQUENCY_GROUPS,
        "score_thresh_count_from": test.COUNT_FROM,
    }


def postprocessings(model: nn.Module) -> list[PostProcessing]:
    """Return the post-processing of each box predictor or dense detector in a model."""
    found = (getattr(module, "postprocessing", None) for module in model.modules())
    return [value for value in found if isinstance(value, PostProcessing)]
