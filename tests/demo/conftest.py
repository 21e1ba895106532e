from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from apa_det.data import generate_dataset
from apa_det.engine import read_config

QUICKSTART = Path(__file__).parents[2] / "configs/Quickstart/mask_rcnn_R_18_FPN_APA"


@dataclass
class Detector:
    """The quickstart's detector of 4 classes, with random weights in a file."""

    folder: Path  # of the dataset and the weights
    pictures: list[str]
    weights: str
    opts: list  # of the yaml config
    lazy_opts: list  # of the LazyConfig
    yaml: str = f"{QUICKSTART}.yaml"
    lazy: str = f"{QUICKSTART}.py"

    def config(self, *opts) -> CfgNode:
        return read_config(self.yaml, [*self.opts, *opts])


@pytest.fixture(scope="session")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    generate_dataset(folder, num_train=12, num_val=4, num_classes=4, image_size=64)
    sets = [[f"demo_{s}", str(folder / f"{s}.json"), str(folder)] for s in ("train", "val")]
    weights = str(folder / "model.pth")
    made = Detector(
        folder,
        sorted(map(str, (folder / "val").iterdir())),
        weights,
        opts=[
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights, "MODEL.ROI_HEADS.NUM_CLASSES", 4),
            *("DATASETS.LVIS_FORMAT", sets, "DATASETS.TRAIN", ("demo_train",)),
            *("DATASETS.TEST", ("demo_val",), "TEST.DETECTIONS_PER_IMAGE", 5),
            *("INPUT.MIN_SIZE_TEST", 96),
        ],
        lazy_opts=[
            f"train.init_checkpoint={weights}",
            "train.device=cpu",
            "model.roi_heads.num_classes=4",
            "model.roi_heads.box_predictor.test_topk_per_image=5",
            f"dataloader.lvis_format={sets}",
            "dataloader.train.dataset.names=demo_train",
            "dataloader.test.dataset.names=demo_val",
            "dataloader.test.mapper.augmentations.0.short_edge_length=96",
        ],
    )
    torch.manual_seed(0)
    torch.save({"model": build_model(made.config()).state_dict()}, weights)
    return made
