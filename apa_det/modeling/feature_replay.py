"""Replay of features of scarce classes, for the class loss of the box head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..data.class_counts import check_num_classes, get_classes_of_groups
from ..errors import UserError
from .feature_memory import FeatureMemory, draw_features

_KEY = "MODEL.ROI_BOX_HEAD.REPLAY"


class FeatureReplay(nn.Module):
    """Adds features of scarce classes from a memory to those that a box predictor classifies.

    Object-centric memory replay ("Image-Level or Object-Level? A Tale of Two Resampling Strategies
    for Long-Tailed Detection", RIO, Chang et al., ICML 2021), with interpolation between
    neighbors (SMOTE, see :func:`draw_features`). As in the authors' code, features are outputs of
    the box head, i.e. the inputs of the classifier, and the memory of a class is first in, first
    out. Different from it: classes are replayed whether or not they occur in the batch,
    there is one feature per object and image (of the proposal that overlaps most with it) instead
    of one per foreground proposal, and replayed features have no box regression loss.

    The features in the memory are detached: replayed ones give gradients to the classifier (and to
    λ and κ of the class score) only. The class loss treats them as further proposals: it is the
    mean over the proposals and the replayed features together, and what the loss counts, in a batch
    or over the training, includes both.

    The trainer fills the memory after each step that updates the weights: see
    :class:`apa_det.engine.replay_memories.ReplayMemories`. Without it, nothing is replayed. The
    memory is not part of the model's state dict; the trainer saves it.

    Attributes:
        share: may be changed between steps.
        is_recording: whether a trainer takes the features with :meth:`take_recorded`.
    """

    @configurable
    def __init__(
        self,
        num_classes: int,
        *,
        datasets: str | Sequence[str],
        share: float = 0.1,
        neighbors: int = 5,
        memory: int = 20,
        groups: Sequence[str] = ("r", "c"),
        max_count: int = 0,
        start_iter: int = 0,
    ):
        """
        Args:
            num_classes: K, the number of foreground classes.
            datasets: registered training datasets, which tell the scarce classes.
            share: number of features to replay per proposal of a batch; 0: none.
            neighbors: k of SMOTE; 0: replay features as they are.
            memory: number of features of a class to keep.
            groups: frequency groups of the scarce classes, of "r", "c" and "f".
            max_count: if not 0, the scarce classes are those in at most this many training images,
                whatever their group.
            start_iter: iteration from which features are remembered and replayed.

        Raises:
            UserError: a number is out of range, or a group is unknown.
        """
        super().__init__()
        for name, value, low in (
            ("SHARE", share, 0),
            ("NEIGHBORS", neighbors, 0),
            ("MEMORY", memory, 1),
            ("MAX_COUNT", max_count, 0),
            ("START_ITER", start_iter, 0),
        ):
            if not value >= low:
                raise UserError(f"{_KEY}.{name} must be >= {low}, got {value}.")
        if unknown := [group for group in groups if group not in ("r", "c", "f")]:
            raise UserError(f"{_KEY}.GROUPS must be of r, c and f; got {unknown[0]!r}.")
        self.num_classes = num_classes
        self.datasets = [datasets] if isinstance(datasets, str) else datasets
        self.share, self.neighbors, self.size = share, neighbors, memory
        self.groups, self.max_count, self.start_iter = tuple(groups), max_count, start_iter
        self.is_recording = False
        self.memory: FeatureMemory | None = None  # built by look_up
        self._recorded: list[tuple[Tensor, Tensor]] = []
        self._features: Tensor | None = None  # of the proposals, between extend and losses
        self._replayed: Tensor | None = None  # classes of the replayed features

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        replay = cfg.MODEL.ROI_BOX_HEAD.REPLAY
        return {
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "datasets": cfg.DATASETS.TRAIN,
            "share": replay.SHARE,
            "neighbors": replay.NEIGHBORS,
            "memory": replay.MEMORY,
            "groups": replay.GROUPS,
            "max_count": replay.MAX_COUNT,
            "start_iter": replay.START_ITER,
        }

    def look_up(self) -> None:
        """Look up the scarce classes of the training datasets, which must be loaded.

        Raises:
            UserError: the datasets do not give them, or no class is scarce.
        """
        if self.memory is not None:
            return
        scarce = get_classes_of_groups(self.datasets, self.groups, self.max_count)
        check_num_classes(scarce, self.num_classes, f"{_KEY}.SHARE")
        if not scarce.any():
            which, key = f"in the groups {', '.join(self.groups) or '(none)'}", "GROUPS"
            if self.max_count:
                which, key = f"in at most {self.max_count} training images", "MAX_COUNT"
            raise UserError(
                f"{_KEY}.SHARE has no effect: no class of the training set is {which}. Set it to "
                f"0, or change {_KEY}.{key}."
            )
        self.memory = FeatureMemory(scarce.nonzero()[:, 0], self.size)

    def extend(self, features: Tensor) -> Tensor:
        """Append replayed features.

        Args:
            features: of N proposals, shape (N, D).

        Returns:
            Shape (N + M, D) with M = round(share · N), or ``features`` if nothing is replayed.
        """
        self._features = self._replayed = None
        if not (self.is_recording and self.share):
            return features
        storage = get_event_storage()
        if storage.iter < self.start_iter:
            return features
        self._features = features.detach()
        drawn = draw_features(self.memory, round(self.share * len(features)), self.neighbors)
        sizes = self.memory.sizes
        storage.put_scalar("replay/num_replayed", 0 if drawn is None else len(drawn[1]))
        storage.put_scalar("replay/memory_fill", float(sizes.sum()) / (len(sizes) * self.size))
        if drawn is None:
            return features
        replayed, self._replayed = drawn
        return torch.cat([features, replayed.to(features)])

    def extend_labels(self, gt_classes: Tensor) -> Tensor:
        """Append the classes of the features that the last :meth:`extend` has appended."""
        if self._replayed is None:
            return gt_classes
        return torch.cat([gt_classes, self._replayed])

    @torch.no_grad()
    def record(self, proposals: Sequence[Instances]) -> None:
        """Note the features of scarce objects in the batch of the last :meth:`extend`.

        Args:
            proposals: those of the batch, with ``proposal_boxes``, ``gt_classes`` and, if any is
                not background, ``gt_boxes``.
        """
        if self._features is None:
            return
        classes = self.memory.classes.to(self._features.device)
        is_scarce = torch.zeros(self.num_classes + 1, dtype=torch.bool, device=classes.device)
        is_scarce[classes] = True
        start = 0
        for image in proposals:
            rows = is_scarce[image.gt_classes].nonzero()[:, 0]
            if len(rows):
                rows = rows[_best_of_each_object(image[rows])]
                features = self._features[start + rows]
                finite = features.isfinite().all(1)
                self._recorded.append((features[finite], image.gt_classes[rows][finite]))
            start += len(image)
        self._features = self._replayed = None

    def take_recorded(self) -> tuple[Tensor, Tensor] | None:
        """Return the features, shape (n, D), and classes noted since the last call, and forget.

        None if there are none.
        """
        recorded, self._recorded = self._recorded, []
        if not recorded:
            return None
        features, labels = zip(*recorded, strict=True)
        return torch.cat(features), torch.cat(labels)


def build_feature_replay(cfg: CfgNode) -> FeatureReplay | None:
    """Build the replay of a config; None if neither it nor its second stage has any."""
    second = cfg.SOLVER.DECOUPLED
    in_second = second.MAX_ITER and second.REPLAY_SHARE
    return FeatureReplay(cfg) if cfg.MODEL.ROI_BOX_HEAD.REPLAY.SHARE or in_second else None


def _best_of_each_object(proposals: Instances) -> Tensor:
    """Return the index of the proposal that overlaps most with each object.

    Proposals with the same ground truth box and class are of the same object.
    """
    boxes, labels = proposals.gt_boxes, proposals.gt_classes
    iou = matched_pairwise_iou(proposals.proposal_boxes, boxes)
    keys = torch.cat([boxes.tensor, labels[:, None].to(boxes.tensor)], dim=1)
    unique, objects = keys.unique(dim=0, return_inverse=True)
    is_of = F.one_hot(objects, len(unique)).bool()
    return torch.where(is_of, iou[:, None], -1.0).argmax(dim=0)
