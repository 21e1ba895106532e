"""Settings of apa_det in LazyConfigs, against the same settings of yaml configs."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from torch import nn

from apa_det.engine import LazyJob, evaluate, load_model, read_lazy_config, setup_job, train
from apa_det.engine.jobs import fit_calibration
from apa_det.engine.testing import SubsetTest
from apa_det.errors import UserError
from apa_det.modeling import injected

from ..conftest import flat, read_metrics, training_flags

ROOT = Path(__file__).parents[2]
RETINANET = ROOT / "configs/LVISv1-InstanceSegmentation/retinanet_R_50_FPN_AGLU_gate_1x.py"


@pytest.fixture
def yaml_arguments(quickstart, tmp_path):
    """Make the training flags of the quickstart's yaml config."""

    def make(*opts, **flags):
        output = ("OUTPUT_DIR", tmp_path / "yaml")
        return training_flags(quickstart.yaml, *quickstart.opts, *output, *opts, **flags)

    return make


def test_evaluates_a_subset_during_training(lazy_arguments, output):
    options = ("train.eval_subset=3", "train.eval_period=1", "train.best_metric=subset/bbox/AP50")
    train(setup_job(lazy_arguments(*options)))
    evaluations = [m for m in read_metrics(output) if "subset/bbox/AP" in m]
    assert [("bbox/AP" in m) for m in evaluations] == [False, True]
    assert (output / "log.txt").read_text().count("Evaluating 3 images of tiny_val") == 1
    best = torch.load(output / "model_best.pth", weights_only=True)
    assert best["value"] == max(m["subset/bbox/AP50"] for m in evaluations)

    weights = f"train.init_checkpoint={output}/model_final.pth"
    job = setup_job(lazy_arguments(*options, weights))
    subset = {k: v for k, v in evaluations[-1].items() if k.startswith("subset/")}
    assert flat(SubsetTest(job)(load_model(job))) == subset


def test_test_time_augmentation(lazy_arguments, yaml_arguments, output, tmp_path):
    weights = output / "model_final.pth"
    options = [
        *("train.test_augmentation.enabled=True", "train.test_augmentation.min_sizes=[64,96]"),
        *("dataloader.evaluator.save_predictions=True", "train.max_iter=1"),
    ]
    train(setup_job(lazy_arguments(*options)))
    assert {"bbox/AP", "bbox_TTA/AP", "segm_TTA/APr"} <= set(read_metrics(output)[-1])

    evaluation = (f"train.init_checkpoint={weights}", f"train.output_dir={tmp_path}/lazy")
    lazy = evaluate(setup_job(lazy_arguments(*options, *evaluation, eval_only=True)))
    assert flat(lazy).items() <= read_metrics(output)[-1].items()
    options = [
        *("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96)),
        *("TEST.SAVE_PREDICTIONS", True, "MODEL.WEIGHTS", weights),
    ]
    assert flat(evaluate(setup_job(yaml_arguments(*options, eval_only=True)))) == flat(lazy)
    plain, augmented = (
        [
            json.loads((tmp_path / kind / folder / "lvis_instances_results.json").read_text())
            for kind in ("lazy", "yaml")
        ]
        for folder in ("inference", "inference_TTA")
    )
    assert plain[0] == plain[1] and augmented[0] == augmented[1]
    assert augmented[0] and augmented[0] != plain[0]


def test_augmentation_of_other_models(lazy_arguments):
    option = "train.test_augmentation.enabled=True"
    args = lazy_arguments(option)
    cfg = setup_job(args).config
    cfg.model = L(injected)(model=cfg.model)
    LazyJob(cfg).check(eval_only=False)
    with pytest.raises(UserError, match=r"works with L\(GeneralizedRCNN\) only"):
        LazyJob(read_lazy_config(str(RETINANET), [option])).check(eval_only=False)


def statistics(folder):
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return {name: value for name, value in state.items() if "running_" in name}


def test_precise_bn(lazy_arguments, yaml_arguments, output, tmp_path):
    """Without learning, batch norm statistics are all that changes."""
    options = ("train.max_iter=1", "optimizer.lr=0", "dataloader.evaluator=null")
    precise_bn = ("train.precise_bn.enabled=True", "train.precise_bn.num_iter=2")
    train(setup_job(lazy_arguments(*options, *precise_bn)))
    plain = f"train.output_dir={tmp_path}/plain"
    train(setup_job(lazy_arguments(*options, plain)))
    options = ("SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 0.0, "DATASETS.TEST", ())
    precise_bn = ("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2)
    train(setup_job(yaml_arguments(*options, *precise_bn)))
    ours, plain, expected = map(statistics, (output, tmp_path / "plain", tmp_path / "yaml"))
    assert ours.keys() == plain.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name
        assert not torch.equal(plain[name], value), name


def learning_rates(job):
    parameter = nn.Parameter(torch.zeros(1))
    config = job.config
    lr = config.optimizer.lr if isinstance(job, LazyJob) else config.SOLVER.BASE_LR
    optimizer = torch.optim.SGD([parameter], lr)
    scheduler, rates = job.build_lr_scheduler(optimizer), []
    for _ in range(job.max_iter):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_scaled_to_another_number_of_processes(lazy_arguments, yaml_arguments):
    schedule = "lr_multiplier.scheduler"
    lazy = setup_job(
        lazy_arguments(
            *("train.reference_world_size=4", "dataloader.train.total_batch_size=16"),
            *("train.max_iter=80", "train.eval_period=20", "train.checkpointer.period=40"),
            *("train.accumulate=2", "train.ema.enabled=True", "train.ema.decay=0.99"),
            *(f"{schedule}.milestones=[40,60]", f"{schedule}.num_updates=80"),
            *("optimizer.lr=0.02", "lr_multiplier.warmup_length=0.25"),
        )
    )
    by_yaml = setup_job(
        yaml_arguments(
            *("SOLVER.REFERENCE_WORLD_SIZE", 4, "SOLVER.IMS_PER_BATCH", 16),
            *("SOLVER.MAX_ITER", 80, "TEST.EVAL_PERIOD", 20, "SOLVER.CHECKPOINT_PERIOD", 40),
            *("SOLVER.ACCUMULATE", 2, "SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.99),
            *("SOLVER.STEPS", (40, 60), "SOLVER.BASE_LR", 0.02, "SOLVER.WARMUP_ITERS", 20),
            *("MODEL.APA.LOG_PERIOD", 2),
        )
    )
    names = ("batch_size", "num_parts", "reference_world_size", "max_iter", "eval_period")
    names += ("checkpoint_period", "parameter_log_period", "ema_decay")
    for processes, batch_size in ((8, 32), (2, 8), (1, 4)):
        ours, expected = lazy.scaled(processes), by_yaml.scaled(processes)
        assert {n: getattr(ours, n) for n in names} == {n: getattr(expected, n) for n in names}
        assert ours.batch_size == batch_size
        assert learning_rates(ours) == pytest.approx(learning_rates(expected), rel=1e-9)
    assert lazy.scaled(4) is lazy
    trainer = lazy.build_trainer()  # in one process
    assert (trainer.max_iter, trainer.data_loader.batch_size) == (320, 4)


def test_scaling_needs_a_batch_size_and_a_learning_rate(lazy_arguments):
    cfg = setup_job(lazy_arguments("train.reference_world_size=1")).config
    del cfg.optimizer["lr"]
    with pytest.raises(UserError, match="reference_world_size needs optimizer.lr, which"):
        LazyJob(cfg).check(eval_only=False)


def test_frequency_groups_of_a_calibration(lazy_arguments, tmp_path):
    parse = "apa_det.evaluation.FrequencyGroups.parse"
    groups = f"dataloader.evaluator.groups={{_target_:{parse},text:'few:10,many'}}"
    weights = tmp_path / "weights.pth"
    torch.save({"model": setup_job(lazy_arguments()).build_model().state_dict()}, weights)
    job = setup_job(lazy_arguments(groups, f"train.init_checkpoint={weights}", eval_only=True))
    fit = fit_calibration(job, "NorCal", 2, (0.0,))
    assert list(fit.metrics[0]) == ["AP", "APfew", "APmany"]
    with pytest.raises(UserError, match="evaluator.groups must be FrequencyGroups.* got 'few"):
        setup_job(lazy_arguments("dataloader.evaluator.groups='few:10,many'"))


def test_messages_name_the_keys_of_lazy_configs(lazy_arguments, output):
    job = setup_job(lazy_arguments("train.reinitialize=['*nothing*']"))
    with pytest.raises(UserError, match=r"train.reinitialize has the pattern '\*nothing\*'"):
        job.build_trainer()
    with pytest.raises(UserError, match="train.clip_gradients.clip_type must be one of .*value"):
        setup_job(lazy_arguments("train.clip_gradients.clip_type=all")).build_trainer()
    trainer = setup_job(lazy_arguments()).build_trainer()
    trainer.checkpointer.save("model")
    state = torch.load(output / "model.pth", weights_only=True)
    del state["model"]["roi_heads.box_head.fc1.weight"]
    torch.save(state, output / "model.pth")
    weights = f"train.init_checkpoint={output}/model.pth"
    with pytest.raises(UserError, match=r"fc1.weight.* from it \(train.init_checkpoint\)"):
        evaluate(setup_job(lazy_arguments(weights, eval_only=True)))
