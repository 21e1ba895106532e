"""Drawings of detections and ground truth, and of detections in group colors."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.colors import to_rgb
from PIL import Image
from torch import nn

from apa_det.evaluation import FrequencyGroups, drawing
from apa_det.evaluation.drawing import class_style, draw_annotations, draw_detections, draw_groups
from apa_det.utils import annotated_image
from apa_det.utils.plotting import class_color, group_color

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
        box = {"bbox": [30, 5, 25, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
        record = {"file_name": str(path), "image_id": image_id, "height": 40, "width": 60}
        records.append({**record, "annotations": [box] if image_id else []})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).thing_classes = ["cat", "dog"]
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def has_color(pixels, color):
    target = [round(255 * value) for value in to_rgb(color)]
    return bool((pixels == target).all(-1).any())


def panels(path, color):
    """Return whether each of the 2 columns of 3 rows has a color."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    columns = np.array_split(pixels, 2, axis=1)
    return [[has_color(p, color) for p in np.array_split(c, 3)] for c in columns]


@pytest.mark.parametrize("counts", [None, (3, 300)])
def test_draws_detections_and_truth(dataset, tmp_path, counts):
    """A class has the same color in both columns, that of its group if groups are known."""
    color, legend = class_color(1), False
    if counts:
        MetadataCatalog.get(NAME).class_image_count = [
            {"id": i, "image_count": count} for i, count in enumerate(counts)
        ]
        color, legend = group_color(2), True
    loader = [[record] for record in dataset]
    model = OneBox(0.9).train()
    path = tmp_path / "out.png"
    draw_detections(model, loader, NAME, path, num_images=3)
    assert model.training
    pixels = np.asarray(Image.open(path))
    assert has_color(pixels[-40:], group_color(0)) == legend
    without_legend = tmp_path / "panels.png"
    Image.fromarray(pixels[: -40 if legend else None]).save(without_legend)
    assert panels(without_legend, color) == [[True] * 3, [False, True, True]]


@pytest.mark.parametrize(
    "min_score, expected",
    [(0.2, "1 detection, score ≥ 0.2"), (0.5, "1 detection, the best: no score ≥ 0.5")],
)
def test_titles_say_what_is_drawn(dataset, tmp_path, monkeypatch, min_score, expected):
    titles = []

    def image_grid(*args, **kwargs):
        titles.extend(kwargs["titles"])
        return annotated_image.image_grid(*args, **kwargs)

    monkeypatch.setattr(drawing, "image_grid", image_grid)
    loader = [[record] for record in dataset[:2]]
    draw_detections(OneBox(0.3), loader, NAME, tmp_path / "a.png", min_score=min_score)
    assert titles[::2] == [expected] * 2
    assert titles[1::2] == ["ground truth: 0 objects", "ground truth: 1 object"]


@pytest.mark.parametrize("masks", [True, False])
def test_group_colors(masks):
    image = np.zeros((40, 80, 3), np.uint8)
    detections = Instances((40, 80))
    detections.pred_boxes = Boxes(
        torch.tensor([[2.0, 2, 18, 38], [22, 2, 38, 38], [42, 2, 58, 38]])
    )
    detections.scores, detections.pred_classes = (
        torch.tensor([0.7, 0.8, 0.9]),
        torch.tensor([2, 0, 1]),
    )
    if masks:
        detections.pred_masks = torch.zeros(3, 40, 80, dtype=torch.bool)
        for i in range(3):
            detections.pred_masks[i, 4:36, 20 * i + 4 : 20 * i + 16] = True
    groups = FrequencyGroups.lvis()
    drawn = draw_groups(image, detections, ["cat", "$dog", "_owl"], groups, np.array([2, -1, 0]))
    assert drawn.shape[0] > 320 and drawn.shape[1] == 640
    for x, i in ((16, 0), (176, 2), (336, -1)):  # left edges of the boxes
        assert has_color(drawn[160, x : x + 2], group_color(i))
    assert (drawn[160, [80, 240, 400]].max(axis=1) > 30).tolist() == [masks] * 3
    legend = drawn[320:]
    assert all(has_color(legend, group_color(i)) for i in (-1, 0, 1, 2))
    empty = draw_groups(image, detections[:0], ["cat"] * 3, groups, np.array([2, -1, 0]))
    assert empty.shape == drawn.shape  # frames of a video have one size


def test_unknown_groups_have_no_legend():
    style = class_style(["a", "b"], FrequencyGroups.lvis(), np.array([-1, -1]))
    assert style.colors == [class_color(0), class_color(1)] and not style.legend
    style = class_style(["a", "b"], FrequencyGroups.lvis(), np.array([0, 2]))
    assert [text for _, text in style.legend] == [
        "rare classes",
        "common classes",
        "frequent classes",
    ]


def test_annotations_of_all_kinds():
    polygon = {"segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]], "bbox": [10, 10, 20, 20]}
    rle = {"size": [50, 100], "counts": [2550, 450, 2000]}
    annotations = [
        {**polygon, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
        {"bbox": [40, 0, 90, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
        {
            **{"bbox": [51, 0, 60, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1},
            **{"segmentation": rle, "iscrowd": 1},
        },
    ]
    style = class_style(["a", "b"], FrequencyGroups.lvis(), np.array([0, 2]))
    record = {"height": 50, "width": 100, "annotations": annotations}
    drawn = draw_annotations(np.zeros((50, 100, 3), np.uint8), record, style, size=800)
    filled = [np.round(0.4 * 255 * np.array(to_rgb(group_color(i)))) for i in (0, 2)]
    assert np.abs(drawn[200, 160] - filled[0]).max() <= 1  # in the polygon
    assert np.abs(drawn[200, 440] - filled[1]).max() <= 1  # in the crowd
    assert not drawn[200, 640].any()  # in the box without mask
