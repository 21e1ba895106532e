"""Pictures of detections beside their ground truth."""

import os
from collections.abc import Iterable
from itertools import islice

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import Visualizer
from matplotlib.figure import Figure
from torch import nn

__all__ = ["draw_detections"]


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
