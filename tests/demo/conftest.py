from dataclasses import dataclass

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from apa_det.engine import read_config


@dataclass
class Detector:
    """The quickstart's detector of 4 classes, with random weights in a file."""

    images: list[str]
    yaml: str
    opts: list[str]
    lazy: str
    lazy_opts: list[str]

    def config(self, *opts) -> CfgNode:
        return read_config(self.yaml, [*self.opts, *opts])


@pytest.fixture(scope="session")
def detector(quickstart, tiny_dataset, tmp_path_factory):
    weights = str(tmp_path_factory.mktemp("detector") / "model.pth")
    detector = Detector(
        images=sorted(map(str, (tiny_dataset / "val").iterdir())),
        yaml=quickstart.yaml,
        opts=[
            *(*quickstart.opts, "MODEL.WEIGHTS", weights),
            *("TEST.DETECTIONS_PER_IMAGE", "5", "INPUT.MIN_SIZE_TEST", "96"),
        ],
        lazy=quickstart.lazy,
        lazy_opts=[
            *(*quickstart.lazy_opts, f"train.init_checkpoint={weights}"),
            "model.roi_heads.box_predictor.test_topk_per_image=5",
            "dataloader.test.mapper.augmentations.0.short_edge_length=96",
        ],
    )
    torch.manual_seed(0)
    torch.save({"model": build_model(detector.config()).state_dict()}, weights)
    return detector
