"""Losses of the box classifier for data with a long tail."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from torch import Tensor

__all__ = ["drop_loss", "drop_loss_weights", "get_scarce_classes", "share_of_scarce_labels"]

# Training pictures with instances. The built-in metadata give the image count of each class, but
# not the total.
_NUM_IMAGES = {"lvis_v1_train": 99_388}


def drop_loss(log_odds: Tensor, gt_classes: Tensor, scarce: Tensor) -> Tensor:
    """Binary cross-entropy over classes with DropLoss's weights, by the number of proposals.

    Of the log-odds of Gumbel scores it is "GOL + DropLoss": "Long-tailed Instance Segmentation
    using Gumbel Optimized Loss" (Alexandridis et al., ECCV 2022) with :func:`drop_loss_weights`.

    Args:
        log_odds: shape (N, K), the log-odds of each class's score; see
            :func:`apa_det.logit_apa`.
        gt_classes: shape (N,), K for the background.
        scarce: boolean, shape (K,).

    Returns:
        A scalar; 0 without proposals.
    """
    targets = _is_label(gt_classes, log_odds.shape[1]).to(log_odds.dtype)
    weights = drop_loss_weights(gt_classes, scarce)
    loss = F.binary_cross_entropy_with_logits(log_odds, targets, weights, reduction="sum")
    return loss / max(len(log_odds), 1)


def drop_loss_weights(gt_classes: Tensor, scarce: Tensor) -> Tensor:
    """Which losses DropLoss keeps ("DropLoss for Long-Tail Instance Segmentation", AAAI 2021).

    A foreground proposal gives no negative loss to scarce classes. That of a background proposal to
    a scarce class is dropped where a uniform draw, one for each, exceeds the share of scarce labels
    among the foreground proposals; without foreground proposals none is dropped.

    Args:
        gt_classes: shape (N,), K for the background.
        scarce: boolean, shape (K,).

    Returns:
        Shape (N, K), float32: 1 where the loss is kept, 0 where it is dropped.
    """
    n, k = len(gt_classes), len(scarce)
    share = share_of_scarce_labels(gt_classes, scarce)
    drawn = torch.rand(n, k, device=gt_classes.device) > share
    dropped = scarce & ~_is_label(gt_classes, k) & ((gt_classes < k)[:, None] | drawn)
    return (~dropped).float()


def share_of_scarce_labels(gt_classes: Tensor, scarce: Tensor) -> Tensor:
    """Of the foreground proposals, those of scarce classes: a scalar, 1 without any foreground.

    Arguments as for :func:`drop_loss_weights`.
    """
    num_foreground = (gt_classes < len(scarce)).sum()
    num_scarce = F.pad(scarce, (0, 1))[gt_classes].sum()
    return torch.where(num_foreground > 0, num_scarce / num_foreground.clamp(min=1), 1.0)


def _is_label(gt_classes: Tensor, num_classes: int) -> Tensor:
    """Boolean, shape (N, K)."""
    return gt_classes[:, None] == torch.arange(num_classes, device=gt_classes.device)


def get_scarce_classes(dataset_names: Sequence[str], threshold: float = 0.0011) -> Tensor:
    """The classes with instances in less than a share of the pictures.

    The image counts are ``class_image_count`` of the datasets' metadata, summed. The pictures are
    ``num_images`` of them, those with instances, summed too.

    Args:
        dataset_names: registered datasets of the same classes.
        threshold: the share. The published 0.0011 is 109 pictures of LVIS v1.

    Returns:
        Boolean, shape (K,), by contiguous id.

    Raises:
        ValueError: the metadata of a dataset lack the counts, or datasets have other classes.
    """
    counts, total = [], 0
    for name in dataset_names:
        metadata = MetadataCatalog.get(name)
        num_images = metadata.get("num_images", _NUM_IMAGES.get(name))
        if num_images is None or metadata.get("class_image_count") is None:
            raise ValueError(
                f"DropLoss needs the image count of each class, which the dataset {name} does not "
                "give: register its LVIS-format file with DATASETS.LVIS_FORMAT, or set "
                "MODEL.ROI_BOX_HEAD.USE_DROP_LOSS False."
            )
        by_class = sorted(metadata.class_image_count, key=lambda c: c["id"])
        counts.append([c["image_count"] for c in by_class])
        total += num_images
    if len({len(c) for c in counts}) != 1:
        raise ValueError(f"The datasets {', '.join(dataset_names)} have different classes.")
    return torch.tensor(counts).sum(dim=0) / total < threshold
