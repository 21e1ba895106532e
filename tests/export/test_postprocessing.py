"""Exported detectors with score thresholds, soft-NMS, class-agnostic NMS and mask scores."""

import copy

import pytest
import torch

from apa_det.errors import UserError
from apa_det.export import (
    Detector,
    compare,
    export_onnx,
    export_scripting,
    export_tracing,
    load_exported,
)
from apa_det.modeling.postprocessing import postprocessings

from .conftest import build

THRESHOLDS = torch.tensor([0.0, 0.2, 1.0, 0.5, 0.3])


def changed(model, **settings):
    """Return a copy with other settings of the post-processing, and thresholds of the classes."""
    model = copy.deepcopy(model)
    for processing in postprocessings(model):
        processing.score_thresh_per_group = "set below"
        for name, value in settings.items():
            setattr(processing, name, value)
    common = {
        module.test_score_thresh
        for module in model.modules()
        if hasattr(module, "test_score_thresh")
    }
    for processing in postprocessings(model):
        processing._thresholds = (*common, THRESHOLDS)
    return model


@pytest.fixture(scope="module")
def retinanet(quickstart):
    from .conftest import KINDS

    KINDS["apa_retinanet"] = KINDS["retinanet"].replace("RetinaNet", "APARetinaNet") + (
        " MODEL.RETINANET.CLASS_SCORE gumbel MODEL.RETINANET.PRIOR_PROB 0.3"
    )
    return build(quickstart.yaml, "apa_retinanet")


@pytest.mark.parametrize("kind", ["cascade", "apa_retinanet"])
def test_thresholds_are_in_the_file(detectors, retinanet, images, kind, tmp_path):
    pytest.importorskip("onnxruntime")
    plain = retinanet if kind == "apa_retinanet" else detectors(kind)
    model = changed(plain, class_agnostic_nms=True)
    if kind == "cascade":
        model.roi_heads.mask_score = True
    file = str(tmp_path / "model.onnx")
    export_onnx(model, images[0], file)
    traced, exported = export_tracing(model, images[0]), load_exported(file)
    for image in images:
        expected = Detector(model)(image)
        assert (expected["scores"] > THRESHOLDS[expected["classes"]]).all()
        assert 2 not in expected["classes"].tolist() and len(expected["scores"]) > 0
        for outputs in (traced(image), exported(image)):
            assert compare(expected, outputs).is_small
            assert len(outputs["scores"]) == len(expected["scores"])
    assert compare(Detector(plain)(images[0]), traced(images[0])).is_small is False


@pytest.mark.parametrize("kind", ["quickstart", "apa_retinanet"])
def test_soft_nms(detectors, retinanet, images, kind, tmp_path):
    plain = retinanet if kind == "apa_retinanet" else detectors(kind)
    model = changed(plain, soft_nms="gaussian", sigma=0.5)
    traced = export_tracing(model, images[0])
    for image in images:
        difference = compare(Detector(model)(image), traced(image))
        assert difference.is_small and difference.compared > 3
    pytest.importorskip("onnx")
    with pytest.raises(UserError, match="Soft-NMS cannot be exported to ONNX"):
        export_onnx(model, images[0], str(tmp_path / "model.onnx"))
    with pytest.raises(UserError, match="cannot be scripted: use tracing"):
        export_scripting(model)
