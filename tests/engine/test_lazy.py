"""Training, resuming and evaluation of LazyConfigs, and their errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.utils.env import seed_all_rng
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from apa_det.engine import Trainer, setup_job
from apa_det.engine.step import StepTrainer
from apa_det.errors import MissingFileError, UserError
from apa_det.evaluation import METRICS

from ..conftest import flat, read_metrics, training_flags

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/lazyconfig_train_net.py"


@pytest.fixture
def arguments(lazy_arguments):
    return lazy_arguments


def test_train_then_evaluate_then_resume(arguments, output, train_net, quickstart):
    periods = ("train.eval_period=2", "train.log_period=2", "train.checkpointer.period=2")
    best = "train.best_metric=bbox/AP50"
    results = train_net(arguments("train.max_iter=4", best, *periods))
    assert list(results["bbox"]) == list(METRICS)
    written = read_metrics(output)
    assert flat(results).items() <= written[-1].items()
    assert "NaN" not in (output / "metrics.json").read_text()
    (tensorboard,) = output.glob("events.*")
    scalars = EventAccumulator(str(tensorboard)).Reload().Tags()["scalars"]
    assert {"bbox/APr", "apa/backbone.bottom_up.stem.act/lambda"} <= set(scalars)
    assert (output / "apa_parameters.png").stat().st_size > 1000
    saved = torch.load(output / "model_best.pth", weights_only=True)
    assert saved["value"] == max(m["bbox/AP50"] for m in written if "bbox/AP50" in m)

    # --eval-only gives the results of the end of training, also with the saved config
    weights = f"train.init_checkpoint={output}/model_final.pth"
    for config_file in (quickstart.lazy, output / "config.yaml"):
        separate = f"train.output_dir={output}/evaluation"
        evaluated = train_net(arguments(weights, separate, config_file=config_file, eval_only=True))
        assert flat(evaluated) == flat(results)

    # --resume continues after the last iteration
    ended = torch.load(output / "model_final.pth", weights_only=True)
    assert ended["iteration"] == 3
    train_net(arguments("train.max_iter=6", *periods, resume=True))
    iterations = [m["iteration"] for m in read_metrics(output) if "total_loss" in m]
    assert iterations == [1, 3, 5]
    resumed = torch.load(output / "model_final.pth", weights_only=True)
    assert resumed["iteration"] == 5
    momentum = resumed["trainer"]["_trainer"]["optimizer"]["state"]
    assert len(momentum) == len(ended["trainer"]["_trainer"]["optimizer"]["state"]) > 0


def test_same_training_as_yaml(arguments, quickstart, output, tmp_path, monkeypatch, train_net):
    """With the same initial weights, images and seeds, losses and weights are equal."""
    run_step = StepTrainer.run_step

    def seeded_step(self):
        seed_all_rng(self.iter)
        run_step(self)

    monkeypatch.setattr(StepTrainer, "run_step", seeded_step)
    yaml_opts = [
        *(*quickstart.opts, "OUTPUT_DIR", f"{tmp_path}/yaml", "SOLVER.MAX_ITER", 3),
        *("DATASETS.TEST", (), "SOLVER.STEPS", (2,), "SOLVER.WARMUP_ITERS", 2),
    ]
    cfg = setup_job(training_flags(quickstart.yaml, *yaml_opts)).config
    start = tmp_path / "start.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, start)
    args = training_flags(quickstart.yaml, *yaml_opts, "MODEL.WEIGHTS", start)
    trainer = Trainer(setup_job(args).config)
    trainer.resume_or_load(resume=False)
    trainer.train()

    schedule = "lr_multiplier.scheduler"
    train_net(
        arguments(
            *(f"train.init_checkpoint={start}", "train.max_iter=3", "dataloader.evaluator=null"),
            *(f"{schedule}.milestones=[2]", f"{schedule}.values=[1.0,0.1]"),
            *(f"{schedule}.num_updates=3", f"lr_multiplier.warmup_length={2 / 3}"),
            "dataloader.train.seed=1",
        )
    )
    ours, theirs = read_metrics(output)[-1], read_metrics(tmp_path / "yaml")[-1]
    for name in theirs:
        if "loss" in name or name == "lr":
            assert ours[name] == theirs[name], name
    ours, theirs = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (output, tmp_path / "yaml")
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_two_processes_train_and_evaluate_as_one(
    arguments, quickstart, overrides, output, train_net
):
    command = [sys.executable, TOOL, "--config-file", quickstart.lazy, "--num-gpus", "2"]
    command += ["--dist-url", "auto", *overrides, "train.best_metric=segm/AP"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    weights = f"train.init_checkpoint={output}/model_final.pth"
    one = train_net(arguments(weights, f"train.output_dir={output}/one", eval_only=True))
    assert flat(one).items() <= read_metrics(output)[-1].items()
    assert (output / "model_best.pth").exists()


def test_accumulation_ema_and_mixed_precision(arguments, output, train_net):
    ema = ("train.ema.enabled=True", "train.ema.decay=0.5")
    results = train_net(arguments("train.accumulate=2", "train.amp.enabled=True", *ema))
    saved = torch.load(output / "model_final.pth", weights_only=True)
    key = "roi_heads.box_head.fc1.weight"
    assert not torch.equal(saved["ema"][f"module.{key}"], saved["model"][key])
    weights = f"train.init_checkpoint={output}/model_final.pth"
    averaged = train_net(arguments(weights, *ema, eval_only=True))
    assert flat(averaged) == flat(results)


def test_config_of_detectron2(arguments, output):
    """It has no keys of apa_det, and the COCO evaluator."""
    config = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.py")
    args = arguments(config_file=config)
    args.opts = [
        *("train.device=cpu", f"train.output_dir={output}", "train.init_checkpoint=''"),
        *("dataloader.train.dataset.names=tiny_train", "dataloader.test.dataset.names=tiny_val"),
        "model.num_classes=4",
    ]
    setup_job(arguments())  # registers the datasets
    cfg = setup_job(args).config
    assert cfg.model.num_classes == 4 and "best_metric" not in cfg.train
    args.opts[-1] = "model.num_classes=5"
    with pytest.raises(UserError, match="tiny_train has 4 classes, but model.num_classes is 5"):
        setup_job(args)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["train.max_iters=3"], r"no key train.max_iters: .* one of output_dir, .*\+train"),
        (["optimiser.lr=1"], "no key optimiser"),
        (["train.max_iter"], "overrides on the command line: .*missing EQUAL"),
        (["train.max_iter.x=1"], "train.max_iter is not a config"),
        (["dataloader.lvis_format=[[a,b]]"], r"lvis_format\[0\] must be a list of length 3"),
        (["dataloader.train.dataset.names=nowhere"], 'No dataset named "nowhere"'),
        (["model.roi_heads.num_classes=7"], "4 classes, but model.roi_heads.num_classes is 7"),
        (["train.accumulate=3"], "total_batch_size must be a multiple of 3, got 2"),
        (["train.best_metric=segm/APx"], "best_metric must be one of .*APr.* got 'segm/APx'"),
        (["train.best_metric=AP"], "best_metric must be one of .*; got 'AP'"),
        (["dataloader.evaluator=null", "train.best_metric=AP"], "there is no test set"),
    ],
)
def test_errors(arguments, output, opts, message):
    with pytest.raises(UserError, match=message):
        setup_job(arguments(*opts))
    assert not (output / "config.yaml").exists()


def test_missing_and_incomplete_files(arguments, tmp_path):
    with pytest.raises(MissingFileError, match="no config file missing.py"):
        setup_job(arguments(config_file="missing.py"))
    (tmp_path / "part.py").write_text("train = dict(max_iter=1)\n")
    with pytest.raises(UserError, match="part.py is not a training config: missing key 'model'"):
        setup_job(arguments(config_file=tmp_path / "part.py"))
    with pytest.raises(MissingFileError, match="train.init_checkpoint is missing.pth"):
        setup_job(arguments("train.init_checkpoint=missing.pth"))
    with pytest.raises(UserError, match="train.init_checkpoint is empty"):
        setup_job(arguments(eval_only=True))
    weights = tmp_path / "weights.pth"
    torch.save({"model": {}}, weights)
    with pytest.raises(UserError, match="dataloader.evaluator is missing"):
        opts = (f"train.init_checkpoint={weights}", "dataloader.evaluator=null")
        setup_job(arguments(*opts, eval_only=True))


def test_new_keys_need_a_plus(arguments):
    cfg = setup_job(
        arguments("+train.note=x", "model.roi_heads.box_predictor.box_reg_loss_type=giou")
    ).config
    assert cfg.train.note == "x"
    assert cfg.model.roi_heads.box_predictor.box_reg_loss_type == "giou"


def test_cpu_without_cuda(arguments, output, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert setup_job(arguments("train.device=cuda")).config.train.device == "cpu"
    assert "using cpu" in (output / "log.txt").read_text()
