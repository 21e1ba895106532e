"""Training of a small model with all parts of the published detector."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from apa_det.data.class_names import dataset_class_names
from apa_det.engine import Trainer, setup_job
from apa_det.errors import UserError

# The settings of the published LVIS detector that fit the tiny model
GOL = (
    *("MODEL.BACKBONE.NAME", "build_apa_resnet_fpn_backbone", "MODEL.APA.GATE", "se"),
    *("MODEL.ROI_HEADS.NAME", "APAROIHeads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "APAFastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.CLASS_SCORE", "gumbel", "MODEL.ROI_BOX_HEAD.LOGIT_CLAMP", 10.0),
    *("MODEL.ROI_BOX_HEAD.PREDICTOR_WEIGHT_INIT", 0.001),
    *("MODEL.ROI_BOX_HEAD.PREDICTOR_BIAS_INIT", -2.0),
    *("MODEL.ROI_BOX_HEAD.USE_DROP_LOSS", True, "MODEL.ROI_BOX_HEAD.DROP_LOSS_THRESHOLD", 0.3),
    *("MODEL.ROI_MASK_HEAD.NAME", "APAMaskRCNNConvUpsampleHead"),
    *("MODEL.ROI_MASK_HEAD.UPSAMPLE", "carafe", "MODEL.ROI_MASK_HEAD.PREDICTOR", "normed"),
    *("MODEL.ROI_MASK_HEAD.PREDICTOR_TEMPERATURE", 20.25),
    *("MODEL.ROI_MASK_HEAD.PREDICTOR_LEARN_TEMPERATURE", True),
)


@pytest.mark.parametrize("dtype", [None, "", "float16"])
def test_published_losses_train(arguments, dtype):
    iterations = 4 if dtype == "float16" else 20  # float16 is slow on a CPU
    options = ("SOLVER.MAX_ITER", iterations, "DATASETS.TEST", ())
    if dtype is not None:
        options += ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype)
    trainer = Trainer(setup_job(arguments(*GOL, *options)).config)
    precision = {None: None, "": torch.bfloat16, "float16": torch.float16}[dtype]
    assert trainer._trainer.precision == precision
    trainer.train()
    losses = [loss for loss, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == iterations
    assert dtype == "float16" or sum(losses[-5:]) < sum(losses[:5])
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    scarce = trainer.model.roi_heads.box_predictor.class_loss.class_values("cpu")
    assert scarce.any() and not scarce.all()


def test_unknown_image_counts(arguments):
    """The error is raised when the trainer is built."""
    setup_job(arguments())  # registers tiny_train
    DatasetCatalog.register("no_counts", lambda: DatasetCatalog.get("tiny_train"))
    MetadataCatalog.get("no_counts").set(thing_classes=dataset_class_names("tiny_train"))
    cfg = setup_job(arguments(*GOL, "DATASETS.TRAIN", ("no_counts",))).config
    with pytest.raises(UserError, match="no_counts does not give"):
        Trainer(cfg)
    DatasetCatalog.remove("no_counts")


@pytest.mark.parametrize(
    "key,value",
    [("CLASS_LOSS", "SeesawLoss"), ("CLASS_WEIGHTS", "inverse"), ("USE_DROP_LOSS", True)],
)
def test_loss_without_effect(arguments, key, value):
    """detectron2's heads ignore these settings."""
    cfg = setup_job(arguments(f"MODEL.ROI_BOX_HEAD.{key}", value)).config
    assert cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    with pytest.raises(UserError, match=f"BOX_HEAD.{key} has no effect .*NAME to APAROIHeads"):
        Trainer(cfg)
