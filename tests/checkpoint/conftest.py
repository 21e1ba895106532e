import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from apa_det import add_apa_config

CONFIGS = Path(__file__).parents[2] / "configs"
LVIS = "LVISv1-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x.yaml"
FRACAL = "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_normed_FRACAL_2x.yaml"
COCO = "COCO-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_AGLU_2x.yaml"
V3DET = "V3Det-Detection/faster_rcnn_SE_R_50_FPN_AGLU_2x.yaml"
V3DET_CASCADE = "V3Det-Detection/cascade_rcnn_SE_R_50_FPN_AGLU_2x.yaml"


@pytest.fixture(scope="session")
def published():
    """The package published beside this file."""
    spec = spec_from_file_location(
        "published", Path(__file__).with_name("published") / "__init__.py"
    )
    module = module_from_spec(spec)
    sys.modules["published"] = module  # for its relative imports
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_cfg():
    """Return a function that makes the config of a published detector.

    It takes the arguments of published.Detector. There are 100 proposals and 20 detections per
    image, and NMS is at 0.3; everything else is as published.
    """

    def make(
        num_classes,
        depth=50,
        *,
        gate="se",
        per_channel=False,
        aglu=True,
        classifier="gumbel",
        cascade=False,
        masks=True,
        temperature=None,
        carafe=None,
    ):
        cfg = get_cfg()
        add_apa_config(cfg)
        v3det = V3DET_CASCADE if cascade else V3DET
        by_classifier = {"gumbel": LVIS, "normed_softmax": FRACAL, "softmax": COCO}
        cfg.merge_from_file(str(CONFIGS / by_classifier.get(classifier, v3det)))
        head = cfg.MODEL.ROI_BOX_HEAD
        head.CALIBRATION, head.CALIBRATION_STRENGTH = "", 0.0
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1e-4
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.WEIGHTS = ""
        cfg.MODEL.MASK_ON = masks
        cfg.MODEL.APA.PER_CHANNEL = cfg.MODEL.APA.GATE_PER_CHANNEL = per_channel
        cfg.MODEL.APA.GATE = gate.removesuffix("_sigmoid")
        cfg.MODEL.APA.GATE_SPATIAL_ACTIVATION = "sigmoid" if gate.endswith("sigmoid") else ""
        cfg.MODEL.APA.ACTIVATION = "aglu" if aglu else "relu"
        if classifier == "normed_sigmoid":
            head.CLASS_SCORE, head.BACKGROUND_OUTPUT = "sigmoid", False
            head.PREDICTOR, head.PREDICTOR_TEMPERATURE = "normed", 50.0
        if masks:
            head = cfg.MODEL.ROI_MASK_HEAD
            carafe = temperature is None if carafe is None else carafe
            head.UPSAMPLE = "carafe" if carafe else "deconv"
            head.PREDICTOR = "conv" if temperature == "none" else "normed"
            head.PREDICTOR_LEARN_TEMPERATURE = temperature is None
            if isinstance(temperature, float):
                head.PREDICTOR_TEMPERATURE = temperature
            cfg.MODEL.ROI_BOX_CASCADE_HEAD.MASK_HEAD_PER_STAGE = cascade
        cfg.MODEL.RESNETS.DEPTH = depth
        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 100
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.3
        cfg.TEST.DETECTIONS_PER_IMAGE = 20
        return cfg

    return make
