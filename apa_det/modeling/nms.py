"""Soft-NMS: lower the scores of overlapping boxes instead of removing the boxes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

SOFT_NMS = ("linear", "gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    method: str = "gaussian",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    max_detections: int = -1,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS within each class.

    "Soft-NMS -- Improving Object Detection With One Line of Code" (Bodla et al., ICCV 2017,
    equations 2 and 3): the box of the highest score is selected, the scores of the others are
    multiplied by a factor that depends on their IoU with it, and so on. The factor is 1 − IoU for
    an IoU >= ``iou_threshold`` and else 1 ("linear"), or e^(−IoU² / σ) ("gaussian"). All classes
    take their steps together, and a class stops once none of its boxes can be among the detections
    any more.

    Args:
        boxes: float, shape (N, 4): x0, y0, x1, y1.
        scores: float, shape (N,), >= 0.
        classes: int64, shape (N,). Boxes of different classes do not affect each other.
        method: "linear" or "gaussian".
        iou_threshold: for "linear".
        sigma: σ of "gaussian", > 0.
        max_detections: return only this many boxes, those of the highest new scores. Negative: all.

    Returns:
        Indices of the boxes with a new score > 0, in descending order of the new scores; and these
        scores, in the dtype of ``scores``.

    Raises:
        UserError: ``method`` is unknown.
    """
    if method not in SOFT_NMS:
        raise UserError(f"The soft-NMS method must be {' or '.join(SOFT_NMS)}; got {method!r}.")
    limit = len(scores) if max_detections < 0 else max_detections
    gaussian = method == "gaussian"
    return _soft_nms(boxes.float(), scores, classes, gaussian, iou_threshold, sigma, limit)


@torch.jit.script_if_tracing  # keeps the loop in a trace
def _soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    gaussian: bool,
    iou_threshold: float,
    sigma: float,
    limit: int,
) -> tuple[Tensor, Tensor]:
    if len(scores) == 0 or limit == 0:
        return classes[:0], scores[:0]
    table = _by_class(scores, classes)
    is_box = table >= 0
    table = table.clamp(min=0)
    remaining = scores[table].float() * is_box  # 0: selected, or no box
    boxes = boxes[table]  # (C, M, 4)
    areas = (boxes[:, :, 2:] - boxes[:, :, :2]).prod(dim=2)
    selected, new_scores = [table[0, :0]], [remaining[0, :0]]
    bound = 0.0  # the lowest score among the best ones so far
    while True:
        best, column = remaining.max(dim=1)
        # Scores only fall: a class whose best one is not above the bound is finished.
        rows = (best > bound).nonzero()[:, 0]
        if len(rows) == 0:
            break
        table, boxes, areas, remaining = table[rows], boxes[rows], areas[rows], remaining[rows]
        best, column = best[rows], column[rows, None]
        selected.append(table.gather(1, column)[:, 0])
        new_scores.append(best)
        chosen = boxes.gather(1, column[:, :, None].expand(-1, -1, 4))
        low = torch.maximum(boxes[:, :, :2], chosen[:, :, :2])
        high = torch.minimum(boxes[:, :, 2:], chosen[:, :, 2:])
        common = (high - low).clamp(min=0).prod(dim=2)
        iou = common / (areas + areas.gather(1, column) - common).clamp(min=1e-12)
        if gaussian:
            remaining = remaining * torch.exp(-(iou**2) / sigma)
        else:
            remaining = torch.where(iou >= iou_threshold, remaining * (1 - iou), remaining)
        remaining = remaining.scatter(1, column, 0.0)
        found = torch.cat(new_scores)
        if len(found) >= limit:
            bound = float(found.topk(limit)[0][-1])
    found = torch.cat(new_scores)
    order = found.argsort(descending=True, stable=True)[:limit]
    return torch.cat(selected)[order], found[order].to(scores.dtype)


def _by_class(scores: Tensor, classes: Tensor) -> Tensor:
    """Return the indices of the boxes of each class, by descending score: (C, M), padded by −1."""
    order = scores.argsort(descending=True, stable=True)
    order = order[classes[order].argsort(stable=True)]
    _, counts = torch.unique_consecutive(classes[order], return_counts=True)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    starts = F.pad(counts.cumsum(0), (1, 0))[:-1]
    table = classes.new_full((len(counts), int(counts.max())), -1)
    table[rows, torch.arange(len(order), device=rows.device) - starts[rows]] = order
    return table
