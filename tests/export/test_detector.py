"""What is exported, against detectron2's models as they are called."""

import copy

import pytest
import torch
from detectron2.layers import paste_masks_in_image
from torch import nn

from apa_det.export import Detector


@pytest.mark.parametrize("kind", ["quickstart", "published", "retinanet"])
def test_gives_the_models_own_detections(detectors, images, kind):
    model = detectors(kind)
    for image in images:
        with torch.no_grad():
            own = model([{"image": image}])[0]["instances"]
        found = Detector(model)(image)
        assert len(own) == len(found["scores"]) > 0
        assert torch.equal(found["boxes"], own.pred_boxes.tensor)
        assert torch.equal(found["classes"], own.pred_classes)
        assert torch.equal(found["scores"], own.scores)
        assert ("masks" in found) == own.has("pred_masks")
        if "masks" in found:
            pasted = paste_masks_in_image(found["masks"][:, 0], own.pred_boxes, image.shape[1:])
            assert torch.equal(pasted, own.pred_masks)


def test_boxes_without_area_are_left_out(detectors, images):
    model, image = detectors("quickstart"), images[0]
    inference = model.inference

    def with_an_empty_box(*args, **kwargs):
        (found,) = inference(*args, **kwargs)
        found.pred_boxes.tensor[0] = torch.tensor([-9.0, 5, -4, 9])
        return [found]

    whole = Detector(model)(image)
    model.inference = with_an_empty_box
    try:
        found = Detector(model)(image)
    finally:
        del model.inference
    assert torch.equal(found["boxes"], whole["boxes"][1:])


def test_errors(detectors):
    with pytest.raises(ValueError, match="model.eval"):
        Detector(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear cannot be exported"):
        Detector(nn.Linear(2, 2).eval())
    model = copy.deepcopy(detectors("quickstart"))
    model.roi_heads.keypoint_on = True
    with pytest.raises(ValueError, match="Keypoints cannot be exported"):
        Detector(model)
