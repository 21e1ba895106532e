"""Samples of class logits, of proposals or anchors labeled as in training."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .inputs import CLASS_SCORE, InputSampler, eta_parameters

_BACKGROUND = 512  # background anchors per batch


def has_roi_class_scores(model: nn.Module) -> bool:
    """Return whether :func:`sample_roi_class_scores` supports the RoI heads of a model."""
    heads = getattr(model, "roi_heads", None)
    return hasattr(heads, "label_and_sample_proposals") and hasattr(heads, "box_predictor")


def sample_roi_class_scores(
    heads: nn.Module,
    inputs: tuple[ImageList, dict[str, Tensor], list[Instances]],
    targets: Sequence[Instances],
    category_groups: np.ndarray,
    sampler: InputSampler,
) -> None:
    """Add the class logits of one batch to the samples.

    There are two samples per cascade stage and frequency group: the logits of the proposals'
    ground-truth classes, and those of all other classes. Proposals are labeled and sampled as in
    training: the heads, but not their layers, are in training mode. Only boxes are predicted.

    Args:
        heads: detectron2's StandardROIHeads or CascadeROIHeads, or a subclass.
        inputs: images, features and proposals that the heads were called with.
        targets: the ground truth of each image, with ``gt_boxes`` and ``gt_classes``.
        category_groups: (K,) index of each class's frequency group; -1: no group.
        sampler: collects the samples.
    """
    images, features, proposals = inputs
    device = proposals[0].proposal_boxes.device
    targets = [_on(target, device) for target in targets]
    name = "roi_heads.box_predictor"
    predictors = {name: heads.box_predictor}
    if isinstance(heads.box_predictor, nn.ModuleList):
        predictors = {f"{name}.{i}": p for i, p in enumerate(heads.box_predictor)}

    def sample(name: str, predictor: nn.Module, predictions, labeled: list[Instances]) -> dict:
        gt_classes = torch.cat([p.gt_classes for p in labeled])
        score = name, *_score(predictor)
        _add(score, predictions[0], gt_classes, category_groups, sampler)
        return {}

    with ExitStack() as stack:
        stack.enter_context(EventStorage())
        for key, value in (("training", True), ("mask_on", False), ("keypoint_on", False)):
            stack.enter_context(_replaced(heads, key, value))
        for name, predictor in predictors.items():
            losses = partial(sample, name, predictor)
            stack.enter_context(_replaced(predictor, "losses", losses))
        heads(images, features, proposals, targets)


def sample_dense_class_scores(
    model: DenseDetector, batch: list[dict], category_groups: np.ndarray, sampler: InputSampler
) -> None:
    """Like :func:`sample_roi_class_scores`, for RetinaNet, FCOS, APARetinaNet and APAFCOS.

    Anchors or points are labeled as in training. All foreground ones are used, and a random subset
    of the background ones.

    The detector is in evaluation mode; the inputs have ``instances``.
    """

    def sample(anchors, logits: list[Tensor], gt_labels: list[Tensor], *_) -> dict:
        logits, gt_labels = torch.cat(logits, dim=1).flatten(0, 1), torch.cat(gt_labels)
        background = (gt_labels == model.num_classes).nonzero()[:, 0]
        chosen = torch.randperm(len(background))[:_BACKGROUND].to(background.device)
        foreground = ((gt_labels >= 0) & (gt_labels < model.num_classes)).nonzero()[:, 0]
        rows = torch.cat([foreground, background[chosen]])
        name = getattr(model, "class_score", "sigmoid")
        score = "head.cls_score", *_named_score(name, getattr(model.head, "score", None))
        _add(score, logits[rows], gt_labels[rows], category_groups, sampler)
        return {}

    with EventStorage(), _replaced(model, "training", True), _replaced(model, "losses", sample):
        model(batch)


def _add(
    score: tuple[str, str, tuple[np.ndarray, np.ndarray] | None],
    logits: Tensor,
    gt_classes: Tensor,
    category_groups: np.ndarray,
    sampler: InputSampler,
) -> None:
    """Add logits of shape (N, K), or (N, K + 1) with the background, to the samples of a score.

    ``score`` is the layer's name, the name of the class score, and its λ and κ.
    """
    name, layer_type, eta = score
    groups = torch.from_numpy(category_groups).to(gt_classes.device)
    logits = logits[:, : len(groups)]
    is_gt = torch.nn.functional.one_hot(gt_classes, len(groups) + 1)[:, :-1].bool()
    for group in range(int(groups.max()) + 1):
        for gt_class, mask in ((True, is_gt), (False, ~is_gt)):
            rows, classes = (mask & (groups == group)).nonzero(as_tuple=True)
            labels = {"group": group, "gt_class": gt_class}
            sample = sampler.sample(name, CLASS_SCORE, layer_type, eta, **labels)
            sample.add(logits[rows, classes], classes)


def _score(predictor: nn.Module) -> tuple[str, tuple[np.ndarray, np.ndarray] | None]:
    """Return the name of a predictor's class score, and its λ and κ."""
    default = "sigmoid" if predictor.use_sigmoid_ce else "softmax"
    name = getattr(predictor, "class_score", default)
    return _named_score(name, getattr(predictor, "score", None))


def _named_score(
    name: str, score: nn.Module | None
) -> tuple[str, tuple[np.ndarray, np.ndarray] | None]:
    if name == "apa":
        return name, eta_parameters(score)
    fixed = {"gumbel": (0.0, 1.0), "sigmoid": (1.0, 1.0)}.get(name)
    return name, fixed and tuple(np.full(1, value) for value in fixed)


@contextmanager
def _replaced(module: nn.Module, name: str, value) -> Iterator[None]:
    """Temporarily set an instance attribute."""
    attributes = vars(module)
    before = dict(attributes)
    attributes[name] = value
    try:
        yield
    finally:
        del attributes[name]
        if name in before:
            attributes[name] = before[name]


def _on(target: Instances, device: torch.device) -> Instances:
    boxes, classes = Boxes(target.gt_boxes.tensor.to(device)), target.gt_classes.to(device)
    return Instances(target.image_size, gt_boxes=boxes, gt_classes=classes)
