"""Pictures with detections drawn on them."""

import os
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib.figure import Figure
from torch import nn

from ..data.frequency import FrequencyGroups
from ..utils.plotting import group_colour, label

__all__ = ["draw_detections", "draw_groups"]

_LEAST_SIZE = 640  # pixels of the longer side, for labels that can be read


@torch.no_grad()
def draw_detections(
    model: nn.Module,
    loader: Iterable[list[dict]],
    dataset_name: str,
    path: str | os.PathLike,
    *,
    num_pictures: int = 6,
    min_score: float = 0.5,
) -> None:
    """Draw detections on the left and ground truth on the right, picture by picture.

    Args:
        model: a detectron2 model; it is left in the mode that it is in.
        loader: a detectron2 test loader of the dataset; its first pictures are drawn.
        dataset_name: the registered dataset, with annotations.
        path: the PNG to write.
        num_pictures: how many pictures, two pairs to a row.
        min_score: detections of a lower score are not drawn.
    """
    records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
    metadata = MetadataCatalog.get(dataset_name)
    inputs = [picture for batch in islice(loader, num_pictures) for picture in batch]
    inputs = inputs[:num_pictures]
    was_training = model.training
    model.eval()
    instances = [model([picture])[0]["instances"].to("cpu") for picture in inputs]
    model.train(was_training)

    rows = -(-len(inputs) // 2)
    figure = Figure(figsize=(16, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, 4, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, title in zip(axes[0], ["detections", "ground truth"] * 2, strict=True):
        axis.set_title(title)
    for pair, picture, found in zip(axes.reshape(-1, 2), inputs, instances, strict=False):
        image = read_image(picture["file_name"], "RGB")
        scale = max(1.0, 480 / max(image.shape[:2]))
        found = found[found.scores >= min_score]
        record = records[picture["image_id"]]
        detections = Visualizer(image, metadata, scale=scale).draw_instance_predictions(found)
        truth = Visualizer(image, metadata, scale=scale).draw_dataset_dict(record)
        pair[0].imshow(detections.get_image())
        pair[1].imshow(truth.get_image())
    figure.savefig(path, dpi=80)


def draw_groups(
    image: np.ndarray,
    found: Instances,
    names: Sequence[str],
    groups: FrequencyGroups,
    group_indices: np.ndarray,
) -> np.ndarray:
    """Draw detections in the colours of their frequency groups, as in the report's figures.

    The label of each is its class, score and group: "zebra 0.87 rare".

    Args:
        image: (H, W, 3) uint8, RGB.
        found: ``pred_boxes``, ``scores``, ``pred_classes``, and maybe ``pred_masks``, on the CPU.
        names: of the K classes.
        groups: the frequency groups.
        group_indices: (K,) the place in ``groups.names`` of each class; -1: unknown, drawn grey.

    Returns:
        (H', W', 3) uint8, RGB; enlarged where the longer side has less than 640 pixels.
    """
    visualizer = Visualizer(image, scale=max(1.0, _LEAST_SIZE / max(image.shape[:2])))
    classes = found.pred_classes.numpy()
    indices = group_indices[classes]
    labels = [
        f"{label(names[c])} {score:.2f} {groups.labels[i] if i >= 0 else ''}".rstrip()
        for c, i, score in zip(classes, indices, found.scores.tolist(), strict=True)
    ]
    visualizer.overlay_instances(
        boxes=found.pred_boxes,
        masks=found.pred_masks.numpy() if found.has("pred_masks") else None,
        labels=labels,
        assigned_colors=[group_colour(i) for i in indices],
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
