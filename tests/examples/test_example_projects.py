"""The example projects train with detectron2's trainers, and every key of their configs acts."""

import importlib.util
import json
import logging
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from torch.optim.optimizer import register_optimizer_step_pre_hook

from apa_det import APA
from apa_det.evaluation import METRICS

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(project):
    path = EXAMPLES / project / "train_net.py"
    spec = importlib.util.spec_from_file_location(f"examples_{project}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flags(project, config, opts):
    return Namespace(
        config_file=str(EXAMPLES / project / config), opts=opts, eval_only=False, resume=False
    )


@pytest.fixture
def datasets(tiny_dataset):
    return [[f"guest_{s}", f"{tiny_dataset}/{s}.json", str(tiny_dataset)] for s in ("train", "val")]


def first_step(caplog, train):
    """Train; return the parameter groups and missing gradients of the first step, and the log."""
    seen = {}

    def look(optimizer, *_):
        if not seen:
            seen["groups"] = [
                (p, group["initial_lr"], group["weight_decay"])
                for group in optimizer.param_groups
                for p in group["params"]
            ]
            seen["without gradient"] = [p for p, *_ in seen["groups"] if p.grad is None]

    handle = register_optimizer_step_pre_hook(look)
    logging.getLogger("apa_det.config.ignored_keys").addHandler(caplog.handler)
    try:
        results = train()
    finally:
        handle.remove()
        logging.getLogger("apa_det.config.ignored_keys").removeHandler(caplog.handler)
    return results, seen, [r.getMessage() for r in caplog.records if "do not act" in r.message]


def check(output, model, results, seen, warnings):
    curve = {id(p) for m in model.modules() if isinstance(m, APA) for p in m.parameters()}
    assert len(curve) > 20
    groups = {id(p): values for p, *values in seen["groups"]}
    assert {tuple(groups[i]) for i in curve} == {(0.00025, 0.0)}
    assert all(lr == 0.0005 for i, (lr, _) in groups.items() if i not in curve)
    assert seen["without gradient"] == [] and warnings == []
    assert {*METRICS} <= results["bbox"].keys() and {*METRICS} <= results["segm"].keys()
    assert MetadataCatalog.get("guest_val").thing_classes
    lines = (output / "metrics.json").read_text().splitlines()
    assert any("act1/lambda" in name for line in lines for name in json.loads(line))
    log = (output / "log.txt").read_text()
    assert "apa_det.data.lvis_format" in log and "apa_det.evaluation.evaluator" in log
    state = torch.load(output / "model_final.pth", weights_only=True)["model"]
    torch.testing.assert_close(state, model.state_dict())


def test_yaml_project(datasets, tmp_path, caplog):
    project = load("yaml_project")
    opts = [
        *("DATASETS.LVIS_FORMAT", str(datasets), "MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path),
        *("DATASETS.TRAIN", "('guest_train',)", "DATASETS.TEST", "('guest_val',)"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 4, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2),
        *("SOLVER.STEPS", "()", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64),
        *("MODEL.APA.LOG_PERIOD", 1),
    ]
    cfg = project.setup(flags("yaml_project", "mask_rcnn.yaml", [*map(str, opts)]))
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    trainer = project.Trainer(cfg)
    _, seen, warnings = first_step(caplog, trainer.train)
    results = trainer._last_eval_results
    assert any(isinstance(m, APA) for m in trainer.model.roi_heads.mask_head.modules())
    check(tmp_path, trainer.model, results, seen, warnings)


def test_lazy_project(datasets, tmp_path, caplog, monkeypatch):
    project = load("lazy_project")
    models = []
    monkeypatch.setattr(project, "instantiate", keeping_models(project.instantiate, models))
    opts = [
        *(f"dataloader.lvis_format={datasets}", f"train.output_dir={tmp_path}"),
        *("dataloader.train.dataset.names=guest_train", "dataloader.test.dataset.names=guest_val"),
        *("dataloader.train.total_batch_size=2", "train.max_iter=2", "train.device=cpu"),
        *("model.model.roi_heads.num_classes=4", "train.log_period=1"),
        "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
        "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    ]
    args = flags("lazy_project", "mask_rcnn.py", opts)
    results, seen, warnings = first_step(caplog, lambda: project.main(args))
    check(tmp_path, models[0], results, seen, warnings)


def keeping_models(instantiate, models):
    def build(config):
        built = instantiate(config)
        if isinstance(built, torch.nn.Module):
            models.append(built)
        return built

    return build
