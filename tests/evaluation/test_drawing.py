"""Drawings of detections and ground truth, and of detections in group colors."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from torch import nn

from apa_det.evaluation import FrequencyGroups, draw_detections, draw_groups

NAME = "test_drawing"


class OneBox(nn.Module):
    """Model that predicts one box of class 1 in the left half with a fixed score."""

    def __init__(self, score):
        super().__init__()
        self.score = score

    def forward(self, inputs):
        detections = Instances((40, 60))
        detections.pred_boxes = Boxes(torch.tensor([[5.0, 5, 25, 35]]))
        detections.scores, detections.pred_classes = torch.tensor([self.score]), torch.tensor([1])
        return [{"instances": detections} for _ in inputs]


@pytest.fixture
def dataset(tmp_path):
    records = []
    for image_id in range(3):
        path = tmp_path / f"{image_id}.png"
        Image.fromarray(np.full((40, 60, 3), 120, np.uint8)).save(path)
        box = {"bbox": [30, 5, 25, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
        record = {"file_name": str(path), "image_id": image_id, "height": 40, "width": 60}
        records.append({**record, "annotations": [box] if image_id else []})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).thing_classes = ["cat", "dog"]
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def panels(path):
    """Return for each of the four panels of the first row if anything is drawn on the grey."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    grey = np.abs(image - 120).max(axis=2) < 4
    areas = [panel.sum() for panel in np.array_split(grey[: len(grey) // 2], 4, axis=1)]
    return [bool(area < 0.99 * max(areas)) for area in areas]


def test_draws_detections_and_truth(dataset, tmp_path):
    loader = [[record] for record in dataset]
    model = OneBox(0.9).train()
    draw_detections(model, loader, NAME, tmp_path / "out.png", num_images=3)
    assert panels(tmp_path / "out.png") == [True, False, True, True]
    assert model.training
    draw_detections(OneBox(0.3), loader, NAME, tmp_path / "low.png", num_images=3)
    assert panels(tmp_path / "low.png") == [False, False, False, True]


@pytest.mark.parametrize("masks", [True, False])
def test_group_colors(masks):
    image = np.zeros((40, 80, 3), np.uint8)
    detections = Instances((40, 80))
    detections.pred_boxes = Boxes(
        torch.tensor([[2.0, 2, 18, 38], [22, 2, 38, 38], [42, 2, 58, 38]])
    )
    detections.scores, detections.pred_classes = (
        torch.tensor([0.9, 0.8, 0.7]),
        torch.tensor([2, 0, 1]),
    )
    if masks:
        detections.pred_masks = torch.zeros(3, 40, 80, dtype=torch.bool)
        for i in range(3):
            detections.pred_masks[i, 4:36, 20 * i + 4 : 20 * i + 16] = True
    groups = FrequencyGroups.lvis()
    names = ["cat", "$dog", "_owl"]
    drawn = draw_groups(image, detections, names, groups, np.array([2, -1, 0]))
    assert drawn.shape == (320, 640, 3)
    # On the left edges of the boxes, above the labels: vermilion, blue and grey
    edges = drawn[80, [16, 176, 336]].astype(int)
    assert edges.argmax(axis=1).tolist()[:2] == [0, 2]
    assert np.ptp(edges[2]) == 0 < edges[2, 0]
    assert (drawn[160, [80, 240, 400]].max(axis=1) > 30).tolist() == [masks] * 3
    assert not drawn[:, 560:].any()  # labels stay left of this
