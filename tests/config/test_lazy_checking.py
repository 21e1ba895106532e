"""Values of LazyConfigs that are not allowed end in one sentence; all others pass."""

import copy
from pathlib import Path

import detectron2
import pytest
from detectron2.config import LazyConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from apa_det.config import check_values, lazy_kinds
from apa_det.engine import read_job, read_lazy_config
from apa_det.errors import UserError

from .values import plain

ROOT = Path(__file__).parents[2]
ZOO = Path(detectron2.__file__).parent / "model_zoo/configs"
LAZY = str(ROOT / "configs/Quickstart/mask_rcnn_R_18_FPN_APA.py")


@pytest.fixture(scope="module")
def lazy():
    return LazyConfig.load(LAZY)


def test_configs_pass(lazy):
    """Those of apa_det are checked in test_lazy_configs.py too."""
    check_values(lazy)
    for name in ("mask_rcnn_R_50_FPN_1x", "mask_rcnn_R_50_C4_1x"):
        check_values(read_lazy_config(str(ZOO / f"COCO-InstanceSegmentation/{name}.py")))


@pytest.mark.parametrize(
    "option, sentence",
    [
        ("train.max_iter=many", "train.max_iter must be an integer >= 1, got 'many'."),
        ("train.max_iter=null", "train.max_iter must be an integer >= 1, got None."),
        ("train.max_iter=???", "The config has no key train.max_iter: set it."),
        ("train=5", "train must be a group of keys, got 5."),
        ("train.ema=5", "train.ema must be a group of keys, got 5."),
        ("train.ema.decay=2", "train.ema.decay must be a number in [0, 1); got 2."),
        ("train.ddp=null", "train.ddp must be a group of keys, got None."),
        ("train.checkpointer.period=0", "must be an integer >= 1, got 0."),
        ("train.device=gpu", "must be a device of PyTorch such as cuda or cpu, got 'gpu'."),
        ("train.trained=score", "train.trained must be a list, got 'score'."),
        ("train.imports=5", "train.imports must be a list, got 5."),
        ("model=5", "model must be a group of keys, got 5."),
        ("optimizer.lr=-1", "optimizer.lr must be a number >= 0, got -1."),
        ("optimizer.lr='${nothing}'", "optimizer.lr: Interpolation key 'nothing' not found."),
        ("dataloader.train.num_workers=-1", "num_workers must be an integer >= 0, got -1."),
        ("dataloader.train.mapper=5", "dataloader.train.mapper must be a group of keys, got 5."),
        ("dataloader.test.dataset.names=5", "names must be a string or a list, got 5."),
        ("dataloader.evaluator.engine=slow", "engine must be fast or lvis, got 'slow'."),
    ],
)
def test_lazy_nonsense(option, sentence):
    with pytest.raises(UserError) as error:
        read_job(LAZY, [option])
    assert str(error.value).endswith(sentence) and option.partition("=")[0] in str(error.value)


@pytest.mark.parametrize("option", ["train.ema=null", "train.decoupled=null", "+train.own=1"])
def test_lazy_values_with_a_meaning_pass(option):
    check_values(read_lazy_config(LAZY, [option]))


@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(sorted(lazy_kinds())), value=plain)
def test_any_lazy_value_is_accepted_or_one_sentence(lazy, key, value):
    cfg = copy.deepcopy(lazy)
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    try:
        check_values(cfg)
    except UserError as error:
        assert str(error).startswith((key.partition(".")[0], "The config has no key")), error
