"""Drawing detections on images."""

import os
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from matplotlib.figure import Figure
from torch import nn

from ..data.class_names import map_classes
from ..data.frequency import FrequencyGroups
from ..data.image_files import read_image
from ..errors import MissingPackageError
from ..utils.plotting import group_color, label
from .by_name import model_classes, select_classes

try:
    from detectron2.utils.visualizer import VisImage, Visualizer
except ImportError as error:
    raise MissingPackageError(
        f"Evaluation and drawing need OpenCV ({error}). Run: pip install opencv-python-headless"
    ) from error

_MIN_SIZE = 640  # pixels of the longer side, for legible labels


@torch.no_grad()
def draw_detections(
    model: nn.Module,
    loader: Iterable[list[dict]],
    dataset_name: str,
    path: str | os.PathLike,
    *,
    num_images: int = 6,
    min_score: float = 0.5,
) -> None:
    """Write a figure of images with detections (left) and ground truth (right).

    Args:
        model: a detectron2 model; its training mode is restored afterwards.
        loader: a detectron2 test loader of the dataset; its first images are drawn.
        dataset_name: the registered dataset, with annotations.
        path: the PNG to write.
        num_images: number of images, two per row.
        min_score: detections with a lower score are not drawn.
    """
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
    metadata = MetadataCatalog.get(dataset_name)
    inputs = [x for batch in islice(loader, num_images) for x in batch][:num_images]
    was_training = model.training
    model.eval()
    instances = [model([x])[0]["instances"].to("cpu") for x in inputs]
    model.train(was_training)
    names = model_classes(model)
    indices = None if names is None else map_classes(dataset_name, names)
    if indices is not None:
        instances = [select_classes(x, indices) for x in instances]

    rows = -(-len(inputs) // 2)
    figure = Figure(figsize=(16, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, title in zip(axes[0], ["detections", "ground truth"] * 2, strict=True):
        axis.set_title(title)
    for pair, x, detections in zip(axes.reshape(-1, 2), inputs, instances, strict=False):
        image = read_image(x["file_name"], "RGB")
        scale = max(1.0, 480 / max(image.shape[:2]))
        left, right = (Visualizer(image, metadata, scale=scale) for _ in range(2))
        detections = detections[detections.scores >= min_score]
        pair[0].imshow(left.draw_instance_predictions(detections).get_image())
        pair[1].imshow(right.draw_dataset_dict(records[x["image_id"]]).get_image())
    figure.savefig(path, dpi=80)


def draw_groups(
    image: np.ndarray,
    detections: Instances,
    names: Sequence[str],
    groups: FrequencyGroups,
    group_indices: np.ndarray,
) -> np.ndarray:
    """Draw detections in the report's colors of their frequency groups.

    Labels show class, score and group: "zebra 0.87 rare".

    Args:
        image: (H, W, 3) uint8, RGB.
        detections: ``pred_boxes``, ``scores``, ``pred_classes`` and optional ``pred_masks``, on
            the CPU.
        names: the K class names.
        groups: the frequency groups.
        group_indices: (K,) index of each class's group in ``groups.names``; -1: no group, grey.

    Returns:
        (H', W', 3) uint8, RGB; enlarged if the longer side has fewer than 640 pixels.
    """
    visualizer = Visualizer(image, scale=max(1.0, _MIN_SIZE / max(image.shape[:2])))
    classes = detections.pred_classes.numpy()
    indices = group_indices[classes]
    labels = [
        f"{label(names[c])} {score:.2f} {groups.labels[i] if i >= 0 else ''}".rstrip()
        for c, i, score in zip(classes, indices, detections.scores.tolist(), strict=True)
    ]
    visualizer.overlay_instances(
        boxes=detections.pred_boxes,
        masks=detections.pred_masks.numpy() if detections.has("pred_masks") else None,
        labels=labels,
        assigned_colors=[group_color(i) for i in indices],
        alpha=0.35,
    )
    _keep_labels_inside(visualizer.output)
    return visualizer.output.get_image()


def _keep_labels_inside(output: VisImage) -> None:
    width, renderer = output.width * output.scale, output.canvas.get_renderer()
    for text in output.ax.texts:
        (x, y), extent = text.get_position(), text.get_window_extent(renderer)
        outside_right, outside_below = max(0, extent.x1 - width), max(0, -extent.y0)
        text.set_position((x - outside_right / output.scale, y - outside_below / output.scale))
