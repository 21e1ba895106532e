import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from apa_det.data import get_dataset_records, register_lvis_format
from apa_det.data.class_thresholds import ClassInfo
from apa_det.data.frequency import FrequencyGroups
from apa_det.engine.figures.image_figures import _bitmaps, _spread, draw_batch
from apa_det.utils.plotting import group_color

INFO = ClassInfo(("ant", "bee", "cat"), np.arange(3), FrequencyGroups.lvis(), np.array([0, 1, 2]))


def sample(color, masks=None, **values):
    image = torch.tensor(color).view(3, 1, 1).expand(3, 60, 80)
    instances = Instances((60, 80), gt_boxes=Boxes([[10.0, 10, 20, 20], [30, 10, 70, 50]]))
    instances.gt_classes = torch.tensor([0, 2])
    if masks is not None:
        instances.gt_masks = masks
    return {"image": image, "file_name": "a/b.jpg", "instances": instances, **values}


def has_color(figure, color, least=1):
    color = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(figure.astype(int) - color).max(2) <= 2).sum() >= least


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_colors_of_images_and_groups(image_format, dtype):
    red = [200, 40, 30] if image_format == "RGB" else [30, 40, 200]
    batch = [sample(red) | {"image": sample(red)["image"].to(dtype)}]
    figure = draw_batch(batch, image_format, INFO)
    assert has_color(figure, "#c8281e", 10_000)
    assert has_color(figure, group_color(0), 50) and has_color(figure, group_color(2), 50)


def test_masks():
    rectangle = [np.array([30.0, 10, 70, 10, 70, 50, 30, 50])]
    polygons = PolygonMasks([[np.array([10.0, 10, 20, 10, 20, 20, 10, 20])], rectangle])
    bitmaps = np.zeros((2, 60, 80), bool)
    bitmaps[0, 10:20, 10:20] = bitmaps[1, 10:50, 30:70] = True
    assert np.array_equal(_bitmaps(polygons, (60, 80)), bitmaps)
    gray = [100, 100, 100]
    figures = [
        draw_batch([sample(gray, masks)], "RGB", INFO)
        for masks in (polygons, BitMasks(torch.from_numpy(bitmaps)), None)
    ]
    assert np.array_equal(*figures[:2]) and not np.array_equal(*figures[1:])


def test_batch_without_instances_and_of_many_images():
    alone = {"image": torch.zeros(1, 40, 30)}
    empty = sample([9, 9, 9])
    empty["instances"] = Instances((60, 80), gt_boxes=Boxes(torch.zeros(0, 4)))
    empty["instances"].gt_classes = torch.zeros(0, dtype=torch.int64)
    assert draw_batch([alone, empty], "L", INFO).shape[2] == 3
    nine = draw_batch([sample([9, 9, 9])] * 9, "RGB", INFO)
    assert np.array_equal(draw_batch([sample([9, 9, 9])] * 40, "RGB", INFO), nine)


def test_images_are_spread_over_the_groups(tiny_dataset, forget_datasets):
    """By the rarest class in each image."""

    def record(*classes):
        return {"annotations": [{"category_id": c} for c in classes]}

    records = [record(2), record(), record(2), record(2, 1), record(2, 0), record(3), record(1)]
    groups = np.array([0, 1, 2, -1])
    assert _spread(records, groups, 4) == [4, 3, 0, 5]
    assert _spread(records, groups, 9) == [4, 3, 0, 5, 6, 2]
    assert _spread([record()], groups, 4) == []

    register_lvis_format("spread_val", f"{tiny_dataset}/val.json", tiny_dataset)
    packed = get_dataset_records(["spread_val"], filter_empty=False)
    assert _spread(packed, groups, 4) == _spread(list(packed), groups, 4) != []
