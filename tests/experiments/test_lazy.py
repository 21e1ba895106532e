"""Comparison of LazyConfigs."""

import gzip
import json
from pathlib import Path

import pytest

from apa_det.errors import UserError
from apa_det.experiments import gather, read_plan, train_run
from apa_det.utils.json_files import read_json

AGLU = {"name": "AGLU"}
RELU = {"name": "ReLU", "opts": ["model.backbone.bottom_up.activation=relu"]}


@pytest.fixture
def describe_lazy(describe, quickstart):
    def write(*rows):
        return describe(*rows, base=quickstart.lazy, overrides=quickstart.lazy_opts)

    return write


def test_plan(describe_lazy, tmp_path):
    plan = read_plan(str(tmp_path), describe_lazy(AGLU, RELU), opts=["train.max_iter=3"])
    plan.check()
    assert plan.differences() == {"ReLU": {"model.backbone.bottom_up.activation": ("aglu", "relu")}}
    assert {row.job.max_iter for row in plan.rows} == {3}
    job = plan.runs[1].job
    assert job.config.dataloader.evaluator.save_predictions
    assert (job.seed, Path(job.output_dir)) == (0, tmp_path / "runs/relu/seed0")


@pytest.mark.parametrize(
    "option, key",
    [
        ("train.max_iter=3", "train.max_iter"),
        ("dataloader.train.total_batch_size=4", "dataloader.train.total_batch_size"),
        ("dataloader.test.dataset.names=tiny_train", "dataloader.test.dataset.names"),
        ("lr_multiplier.warmup_length=0.5", "lr_multiplier.warmup_length"),
        (
            "model.roi_heads.box_predictor.test_topk_per_image=10",
            "model.roi_heads.box_predictor.test_topk_per_image",
        ),
    ],
)
def test_rows_must_share_data_schedule_and_evaluation(describe_lazy, option, key):
    plan = read_plan("out", describe_lazy(AGLU, {"name": "other", "opts": [option]}))
    with pytest.raises(UserError, match=f'"AGLU" and "other" differ in {key}'):
        plan.check()


def test_a_yaml_config_and_a_lazy_config(describe, quickstart):
    rows = [{"name": path[-4:], "config": path} for path in (quickstart.yaml, quickstart.lazy)]
    plan = read_plan("out", describe(*rows))
    with pytest.raises(UserError, match="use one format for all rows"):
        plan.require_same_conditions()


def test_config_that_cannot_be_saved(describe_lazy):
    plan = read_plan("out", describe_lazy(AGLU))
    plan.rows[0].job.config.model.backbone.bottom_up.extra = lambda x: x
    with pytest.raises(UserError, match='row "AGLU" cannot be saved as yaml'):
        plan.check()


def test_override_is_not_a_string(describe_lazy):
    with pytest.raises(UserError, match='row "a": .*no key 3'):
        read_plan("out", describe_lazy({"name": "a", "opts": ["train.max_iter", 3]}))


def test_trained_and_recognized(describe_lazy, tmp_path):
    folder = str(tmp_path / "a=(1), b's")
    plan = read_plan(folder, describe_lazy(AGLU, RELU))
    run = plan.runs[0]
    Path(run.folder).mkdir(parents=True)
    run.job.save_config()
    plan.check()
    train_run(run.folder)
    result = read_json(run.result_file)
    assert result["iterations"] == 2 and {"bbox/AP", "segm/APr"} <= result["metrics"].keys()
    with gzip.open(run.predictions_file) as file:
        assert json.load(file)
    assert gather(plan, 5).iou_types == ("bbox", "segm")

    plan.check()  # the trained run has the same config
    changed = {"name": "AGLU", "opts": ["model.backbone.bottom_up.gate=none"]}
    with pytest.raises(UserError, match="bottom_up.gate was 'se' when .* is 'none' now"):
        read_plan(folder, describe_lazy(changed, RELU)).check()
