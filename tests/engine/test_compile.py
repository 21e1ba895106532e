"""A training step under torch.compile, against the eager one."""

import logging
import re

import pytest
import torch

from apa_det.engine import Trainer, setup_job


class Places(logging.Handler):
    """The files of graph breaks and recompilations."""

    def __init__(self):
        super().__init__()
        self.breaks, self.recompiled = [], []

    def emit(self, record):
        message = record.getMessage()
        if found := re.search(r"Graph break.* in user code at (\S+)", message):
            self.breaks.append(found[1])
        if found := re.search(r"Recompiling function \S+ in (\S+)", message):
            self.recompiled.append(found[1])

    def ours(self):
        return [place for place in self.breaks + self.recompiled if "/apa_det/" in place]


@pytest.fixture
def places():
    torch._dynamo.reset()  # what other tests compiled
    handler, logger = Places(), logging.getLogger("torch._dynamo")
    torch._logging.set_logs(graph_breaks=True, recompiles=True)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    torch._logging.set_logs()
    torch._dynamo.reset()


class Compiled(Trainer):
    """The trainer of docs/training.md, without a C++ compiler."""

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        heads = model.roi_heads
        parts = [model.backbone, model.proposal_generator.rpn_head, heads.box_head]
        for part in [*parts, heads.box_predictor]:
            part.compile(backend="aot_eager")
        return model


def test_compiled_training(arguments, output, places):
    """It saves what the eager one does; nothing of apa_det breaks a graph or is recompiled."""
    options = (
        *("MODEL.APA.GATE", "se", "MODEL.APA.GATE_DROPOUT", 0.0, "MODEL.BACKBONE.FREEZE_AT", 2),
        *("MODEL.RESNETS.NORM", "FrozenBN", "SOLVER.BASE_LR", 1e-4, "SOLVER.EMA.ENABLED", True),
        *("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.ROI_BOX_HEAD.CLASS_SCORE", "apa"),
        *("MODEL.ROI_BOX_HEAD.NAME", "APAFastRCNNConvFCHead", "SOLVER.MAX_ITER", 3),
        *("DATASETS.TEST", ()),
    )
    saved = []
    for kind in (Trainer, Compiled):
        folder = output / kind.__name__
        trainer = kind(setup_job(arguments(*options, "OUTPUT_DIR", folder)).config)
        trainer.model.to(memory_format=torch.channels_last)
        trainer.train()
        saved.append(torch.load(folder / "model_final.pth", weights_only=True))
    assert not places.ours(), places.ours()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4
    eager, compiled = saved
    for key in ("model", "ema"):
        assert eager[key].keys() == compiled[key].keys()
        for name, value in eager[key].items():
            torch.testing.assert_close(compiled[key][name], value, rtol=1e-4, atol=1e-6, msg=name)
    eager, compiled = (s["trainer"]["_trainer"]["optimizer"]["state"] for s in saved)
    for key, state in eager.items():  # sums of gradients
        ours, expected = compiled[key]["momentum_buffer"], state["momentum_buffer"]
        assert (ours - expected).norm() <= 1e-3 * expected.norm() + 1e-6
