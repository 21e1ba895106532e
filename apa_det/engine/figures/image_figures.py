"""Figures of images: a training batch as the network sees it, and predictions of a model."""

import math
from collections.abc import Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import BitMasks, Instances, PolygonMasks, polygons_to_bitmask
from torch import Tensor, nn

from ...data.class_thresholds import ClassInfo, class_info
from ...data.dataset_records import DatasetRecords
from ...data.lvis_format import ensure_metadata
from ...evaluation.drawing import class_style, detections_beside_truth, require_upright
from ...text import printable
from ...utils.annotated_image import draw_instances, image_grid
from ...utils.plotting import class_color
from ..job import Job

_BATCH_IMAGES, _VAL_IMAGES = 9, 6  # at most
_PANEL, _TEXT = (480, 640), 20  # pixels: range of the longer side of an image, height of text


def draw_batch(batch: Sequence[dict], image_format: str, info: ClassInfo) -> np.ndarray:
    """Return a figure of the first images of a training batch.

    Args:
        batch: inputs of a model: ``image``, (C, H, W), and optional ``instances`` with
            ``gt_boxes``, ``gt_classes`` and ``gt_masks``.
        image_format: of the images, e.g. "RGB" or "BGR".
        info: the classes of the model, as far as they are known.

    Returns:
        (H', W', 3) uint8, RGB.

    Raises:
        UserError: the boxes are rotated.
    """
    style = class_style(info.names, info.groups, info.group_indices)
    names, colors = dict(enumerate(style.names)), dict(enumerate(style.colors))
    panels, titles = [], []
    for sample in batch[:_BATCH_IMAGES]:
        image = _rgb(sample["image"], image_format)
        instances = sample.get("instances", Instances(image.shape[:2]))
        boxes, masks, classes = _largest_first(instances)
        panel = draw_instances(
            image,
            boxes,
            [names.get(c, str(c)) for c in classes],
            [colors.get(c, class_color(c)) for c in classes],
            masks=masks,
            size=int(np.clip(max(image.shape[:2]), *_PANEL)),
            font_size=_TEXT,
        )
        panels.append(panel)
        height, width = image.shape[:2]
        name = printable(str(sample.get("file_name", "")).rpartition("/")[2], 30)
        number = "1 object" if len(classes) == 1 else f"{len(classes)} objects"
        titles.append(f"{name} {width}×{height}, {number}".lstrip())
    columns = math.ceil(len(panels) ** 0.5)
    return image_grid(panels, columns, titles=titles, legend=style.legend, font_size=_TEXT)


def _rgb(image: Tensor, image_format: str) -> np.ndarray:
    pixels = np.ascontiguousarray(image.detach().cpu().numpy().transpose(1, 2, 0))
    pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels if image_format == "RGB" else convert_image_to_rgb(pixels, image_format)


def _largest_first(instances: Instances) -> tuple[np.ndarray, np.ndarray | None, list[int]]:
    """Return (n, 4) boxes, (n, H, W) masks or None, and the classes of ground truth."""
    if not instances.has("gt_classes"):
        return np.zeros((0, 4)), None, []
    instances = instances.to("cpu")
    require_upright(instances.gt_boxes)
    order = instances.gt_boxes.area().argsort(descending=True, stable=True)
    instances = instances[order]
    masks = None
    if instances.has("gt_masks"):
        masks = _bitmaps(instances.gt_masks, instances.image_size)
    return instances.gt_boxes.tensor.numpy(), masks, instances.gt_classes.tolist()


def _bitmaps(masks: BitMasks | PolygonMasks, size: tuple[int, int]) -> np.ndarray:
    if isinstance(masks, BitMasks):
        return masks.tensor.numpy()
    bitmaps = [polygons_to_bitmask(polygons, *size) for polygons in masks.polygons]
    return np.array(bitmaps, bool).reshape(-1, *size)


def draw_predictions_of(job: Job, model: nn.Module, dataset_name: str) -> np.ndarray | None:
    """Return a figure of the predictions for some images of a test set beside its ground truth.

    The images are spread over the frequency groups, by the rarest class in each.

    Args:
        job: builds the test mapper.
        model: the job's model.
        dataset_name: one of the job's test sets, with ground truth.

    Returns:
        (H, W, 3) uint8, RGB; None if no image has annotations, or the test set has no classes.

    Raises:
        UserError: the model returns no instances, or rotated boxes.
    """
    ensure_metadata(dataset_name)
    names = MetadataCatalog.get(dataset_name).get("thing_classes")
    if names is None:  # e.g. of semantic segmentation
        return None
    info = class_info([dataset_name], len(names), job.groups, job.count_from)
    records = job.read_test_records(dataset_name)
    chosen = [records[i] for i in _spread(records, info.group_indices, _VAL_IMAGES)]
    if not chosen:
        return None
    mapper = job.build_test_mapper()
    inputs = [mapper(record) for record in chosen]
    return detections_beside_truth(model, inputs, chosen, dataset_name, info)


def _spread(records: Sequence[dict], groups: np.ndarray, number: int) -> list[int]:
    """Return the indices of annotated images whose rarest classes are in different groups."""
    if isinstance(records, DatasetRecords):
        owners, classes = records.owners, records.classes
    else:
        pairs = [
            (i, a["category_id"]) for i, r in enumerate(records) for a in r.get("annotations", ())
        ]
        owners, classes = np.array(pairs, np.int64).reshape(-1, 2).T
    last = groups.max(initial=0) + 1
    rarest = np.full(len(records), last + 1)
    np.minimum.at(rarest, owners, np.where(groups < 0, last, groups)[classes])
    members = [np.flatnonzero(rarest == group).tolist() for group in range(last + 1)]
    chosen: list[int] = []
    while len(chosen) < number and any(members):
        chosen += [indices.pop(0) for indices in members if indices]
    return chosen[:number]
