"""Drawing detections and ground truth on images, in the colors of their frequency groups."""

import os
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances, RotatedBoxes
from PIL import Image
from torch import nn

from ..data.class_names import map_classes
from ..data.class_thresholds import ClassInfo, class_info
from ..data.frequency import FrequencyGroups
from ..data.image_files import read_image
from ..data.records import to_rle
from ..errors import UserError
from ..utils.annotated_image import add_legend, draw_instances, image_grid
from ..utils.plotting import class_color, group_color
from .by_name import model_classes, select_classes

_PANEL, _TEXT = 480, 20  # pixels: size of an image and of its text in the figure
_BEST = 3  # detections of an image that are drawn if all scores are low


@dataclass(frozen=True)
class ClassStyle:
    """How the instances of K classes are drawn; see :func:`class_style`.

    Attributes:
        names: K class names.
        colors: K colors, those of the classes' groups if groups are known.
        legend: ``(color, text)`` of each group; empty if groups are unknown.
    """

    names: Sequence[str]
    colors: Sequence[str]
    legend: Sequence[tuple[str, str]]


def class_style(
    names: Sequence[str], groups: FrequencyGroups, group_indices: np.ndarray
) -> ClassStyle:
    """Return the style of classes: a color per frequency group, or per class if none is known.

    Args:
        names: the K class names.
        groups: the frequency groups.
        group_indices: (K,) index of each class's group in ``groups.names``; -1: no group, grey.
    """
    indices = np.asarray(group_indices)
    if not (indices >= 0).any():
        return ClassStyle(names, [class_color(i) for i in range(len(names))], [])
    legend = [(group_color(i), f"{text} classes") for i, text in enumerate(groups.labels)]
    if (indices < 0).any():
        legend.append((group_color(-1), "no group"))
    return ClassStyle(names, [group_color(i) for i in indices.tolist()], legend)


def draw_detections(
    model: nn.Module,
    loader: Iterable[list[dict]],
    dataset_name: str,
    path: str | os.PathLike,
    *,
    num_images: int = 6,
    min_score: float = 0.5,
    groups: FrequencyGroups | None = None,
    count_from: str | None = None,
) -> None:
    """Write a figure of images with detections (left) and ground truth (right).

    Args:
        model: a detectron2 model; its training mode is restored afterwards.
        loader: a detectron2 test loader of the dataset; its first images are drawn.
        dataset_name: the registered dataset, with annotations.
        path: the PNG to write.
        num_images: number of images, one per row.
        min_score: detections with a lower score are not drawn.
        groups, count_from: see :func:`apa_det.data.class_thresholds.class_info`.
    """
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
    inputs = [x for batch in islice(loader, num_images) for x in batch][:num_images]
    chosen = [records[x["image_id"]] for x in inputs]
    info = class_info(
        [dataset_name], len(MetadataCatalog.get(dataset_name).thing_classes), groups, count_from
    )
    figure = detections_beside_truth(model, inputs, chosen, dataset_name, info, min_score=min_score)
    Image.fromarray(figure).save(path)


@torch.no_grad()
def detections_beside_truth(
    model: nn.Module,
    inputs: Sequence[dict],
    records: Sequence[dict],
    dataset_name: str,
    info: ClassInfo,
    *,
    min_score: float = 0.5,
) -> np.ndarray:
    """Return a figure of images with detections (left) and ground truth (right).

    Args:
        model: a detectron2 model; its training mode is restored afterwards.
        inputs: of the model, one per image, as from a test mapper.
        records: the dataset dicts of these images, with annotations.
        dataset_name: the registered dataset.
        info: its classes.
        min_score: detections with a lower score are not drawn. If none reaches it in any image,
            the best three of each image are drawn.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UserError: the model returns no instances, or rotated boxes.
    """
    was_training = model.training
    model.eval()
    outputs = [model([x])[0] for x in inputs]
    model.train(was_training)
    if outputs and "instances" not in outputs[0]:
        raise UserError(f"The model returns {', '.join(outputs[0])}, not instances.")
    instances = [output["instances"].to("cpu") for output in outputs]
    for x in instances:
        require_upright(x.pred_boxes)
    names = model_classes(model)
    indices = None if names is None else map_classes(dataset_name, names)
    if indices is not None:
        instances = [select_classes(x, indices) for x in instances]
    shown = [x[x.scores >= min_score] for x in instances]
    what = f"score ≥ {min_score:g}"
    if not any(map(len, shown)) and any(map(len, instances)):
        shown = [x[x.scores.argsort(descending=True, stable=True)[:_BEST]] for x in instances]
        what = f"the best: no score ≥ {min_score:g}"

    style = class_style(info.names, info.groups, info.group_indices)
    panels, titles = [], []
    for detections, record in zip(shown, records, strict=True):
        image = read_image(record["file_name"], "RGB")
        sizes = {"size": _PANEL, "font_size": _TEXT}
        panels.append(draw_predictions(image, detections, style, **sizes))
        panels.append(draw_annotations(image, record, style, **sizes))
        titles.append(f"{_count(detections, 'detection')}, {what}")
        titles.append(f"ground truth: {_count(record.get('annotations', ()), 'object')}")
    return image_grid(panels, 2, titles=titles, legend=style.legend, font_size=_TEXT)


def require_upright(boxes: Boxes | RotatedBoxes) -> None:
    """Raise a UserError for rotated boxes, which cannot be drawn."""
    if isinstance(boxes, RotatedBoxes):
        raise UserError("Rotated boxes cannot be drawn.")


def _count(things: Sized, noun: str) -> str:
    return f"1 {noun}" if len(things) == 1 else f"{len(things)} {noun}s"


def draw_groups(
    image: np.ndarray,
    detections: Instances,
    names: Sequence[str],
    groups: FrequencyGroups,
    group_indices: np.ndarray,
) -> np.ndarray:
    """Draw detections in the colors of their frequency groups, with a legend below the image.

    Labels show class and score: "zebra 0.87". If no group is known, each class has a color of its
    own, and there is no legend.

    Args:
        image: (H, W, 3) uint8, RGB.
        detections: ``pred_boxes``, ``scores``, ``pred_classes`` and optional ``pred_masks``, on
            the CPU.
        names: the K class names.
        groups: the frequency groups.
        group_indices: (K,) index of each class's group in ``groups.names``; -1: no group, grey.

    Returns:
        (H', W', 3) uint8, RGB; enlarged if the longer side has fewer than 640 pixels. Its size
        depends on that of ``image`` and on the groups alone.
    """
    style = class_style(names, groups, group_indices)
    return add_legend(draw_predictions(image, detections, style), style.legend)


def draw_predictions(
    image: np.ndarray,
    detections: Instances,
    style: ClassStyle,
    *,
    size: int | None = None,
    font_size: int | None = None,
) -> np.ndarray:
    """Draw detections; see :func:`draw_groups`.

    Args:
        image, detections: see :func:`draw_groups`.
        style: of the classes.
        size, font_size: see :func:`apa_det.utils.annotated_image.draw_instances`.
    """
    detections = detections[detections.scores.argsort(descending=True, stable=True)]
    classes = detections.pred_classes.tolist()
    return draw_instances(
        image,
        detections.pred_boxes.tensor.numpy(),
        [style.names[c] for c in classes],
        [style.colors[c] for c in classes],
        scores=detections.scores.tolist(),
        masks=detections.pred_masks.numpy() if detections.has("pred_masks") else None,
        size=size,
        font_size=font_size,
    )


def draw_annotations(
    image: np.ndarray,
    record: dict,
    style: ClassStyle,
    *,
    size: int | None = None,
    font_size: int | None = None,
) -> np.ndarray:
    """Draw the annotations of a detectron2 dataset dict, the largest first in the choice of labels.

    Args:
        image: (H, W, 3) uint8, RGB.
        record: with ``height``, ``width`` and optional ``annotations``: boxes, and polygons or RLE.
        style: of the classes, by contiguous ``category_id``.
        size, font_size: see :func:`apa_det.utils.annotated_image.draw_instances`.
    """
    annotations = record.get("annotations", ())
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = np.array(boxes, float).reshape(-1, 4)
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable").tolist()
    chosen = [annotations[i] for i in order]
    masks = None
    if any(a.get("segmentation") for a in chosen):
        empty = np.zeros((record["height"], record["width"]), bool)
        masks = [
            _mask(a["segmentation"], record) if a.get("segmentation") else empty for a in chosen
        ]
    return draw_instances(
        image,
        boxes[order],
        [style.names[a["category_id"]] + " (crowd)" * bool(a.get("iscrowd")) for a in chosen],
        [style.colors[a["category_id"]] for a in chosen],
        masks=masks,
        size=size,
        font_size=font_size,
    )


def _mask(segmentation: list | dict, record: dict) -> np.ndarray:
    rle = to_rle(segmentation, record["height"], record["width"])
    return mask_util.decode(rle).astype(bool)
