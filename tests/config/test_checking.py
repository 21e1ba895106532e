"""Values that are not allowed end in one sentence; all others pass."""

import re
from pathlib import Path

import detectron2
import pytest
from detectron2.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_det.config import check_values, yaml_kinds
from apa_det.engine import read_config
from apa_det.errors import UserError
from apa_det.layers import ACTIVATION_REGISTRY

from .values import plain

ROOT = Path(__file__).parents[2]
ZOO = Path(detectron2.__file__).parent / "model_zoo/configs"
BOX_HEAD = "MODEL.ROI_BOX_HEAD"


def leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def with_value(cfg, key, value):
    cfg = cfg.clone()
    node = cfg
    *nodes, name = key.split(".")
    for part in nodes:
        node = node[part]
    node[name] = value
    return cfg


@pytest.fixture(scope="module")
def default():
    return read_config("")


def test_each_key_has_a_kind(default):
    assert set(yaml_kinds()) == {name for name, _ in leaves(default)}
    check_values(default)


def yaml_configs():
    files = [*ZOO.rglob("*.yaml"), *(ROOT / "configs").rglob("*.yaml")]
    return [file for file in files if file.parent.name != "Comparison"]


def test_configs_of_detectron2_and_apa_det_pass():
    files = yaml_configs()
    assert len(files) > 100
    for file in files:
        check_values(read_config(str(file)))


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        (
            "MODEL.APA.ACTIVATION",
            "Aglu",
            r"must be one of aglu, .*; got 'Aglu'. Did you mean aglu\?",
        ),
        ("MODEL.APA.ACTIVATION_PER_STAGE", ["relu"] * 4, "must be a list of length 0 or 5, got .*"),
        ("MODEL.APA.LAMBDA_RANGE", [-0.1, 1.0], r"\[0\] must be a number >= 0, got -0.1\."),
        ("MODEL.APA.KAPPA_RANGE", [1.3, 1.0], "must be .low, high. with low <= high; got .*"),
        (
            "MODEL.APA.GATE",
            "x",
            "must be one of none, .*; got 'x'. Fix the name, or give --import .*",
        ),
        ("MODEL.APA.GATE_REDUCTION", 0, r"must be an integer >= 1, got 0\."),
        ("MODEL.APA.GATE_TOP_SHARE", 0.0, r"must be a number in \(0, 1\]; got 0.0\."),
        ("MODEL.APA.WEIGHT_DECAY", -1.0, r"must be None or a number >= 0, got -1.0\."),
        ("MODEL.APA.INJECT.META_ARCHITECTURE", "APAInjected", "must be one of .*'APAInjected'.*"),
        ("MODEL.APA.INJECT.TYPES", ["tanh"], r"\[0\] must be one of celu, .*; got 'tanh'\."),
        (f"{BOX_HEAD}.CLASS_SCORE", "apa ", r"must be one of \"\", softmax, .*; got 'apa '\."),
        (f"{BOX_HEAD}.SCORE_PRIOR", 1.0, r"must be a number in \(0, 1\); got 1.0\."),
        (f"{BOX_HEAD}.CLASS_WEIGHTS", [1.0, -2.0], r"\[1\] must be a number >= 0, got -2.0\."),
        (
            f"{BOX_HEAD}.CLASS_WEIGHTS",
            "w.txt",
            r"must be a list, a .json file or .*; got 'w.txt'\.",
        ),
        (f"{BOX_HEAD}.CALIBRATION", "Norcal", r"must be one of .*Did you mean NorCal\?"),
        (f"{BOX_HEAD}.GROUP_SOFTMAX_BOUNDARIES", [10, 10], "must be a strictly ascending list, .*"),
        (f"{BOX_HEAD}.GROUP_SOFTMAX_BOUNDARIES", ["a"], r"\[0\] must be a number >= 0, got 'a'\."),
        ("MODEL.REINITIALIZE", "*score*", r"must be a list, got '\*score\*'\."),
        ("SOLVER.ACCUMULATE", 0, r"must be an integer >= 1, got 0\."),
        ("SOLVER.ACCUMULATE", True, r"must be an integer >= 1, got True\."),
        ("SOLVER.EMA.DECAY", 1.0, r"must be a number in \[0, 1\); got 1.0\."),
        ("SOLVER.OPTIMIZER", "Adam", r"must be SGD or ADAMW, got 'Adam'\."),
        ("DATASETS.LVIS_FORMAT", [["name", 5, ""]], r"\[0\]\[1\] must be a string, got 5\."),
        ("TEST.EXTRA_METRICS", ["speed"], r"\[0\] must be one of boundary, AR, .*; got 'speed'.*"),
        ("TEST.ENGINE", "slow", r"must be fast or lvis, got 'slow'\."),
        # detectron2's
        ("SOLVER.BASE_LR", -0.1, r"must be a number >= 0, got -0.1\."),
        ("SOLVER.BASE_LR", float("nan"), r"must be a number >= 0, got nan\."),
        ("SOLVER.BASE_LR", float("inf"), r"must be a number >= 0, got inf\."),
        ("SOLVER.STEPS", (20, 10), r"must be an ascending list, got \(20, 10\)\."),
        ("SOLVER.STEPS", (0.5,), r"\[0\] must be an integer >= 0, got 0.5\."),
        (
            "SOLVER.STEPS",
            tuple(range(1, 40001)),
            r"must be fewer than the SOLVER.MAX_ITER 40000 .*",
        ),
        ("SOLVER.MAX_ITER", 0, r"must be an integer >= 1, got 0\."),
        ("SOLVER.IMS_PER_BATCH", -4, r"must be an integer >= 1, got -4\."),
        ("SOLVER.CHECKPOINT_PERIOD", 0, r"must be an integer >= 1, got 0\."),
        ("SOLVER.WARMUP_METHOD", "cosine", r"must be linear or constant, got 'cosine'\."),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", -1.0, r"must be a number > 0 or inf, got -1.0\."),
        ("TEST.EVAL_PERIOD", -1, r"must be an integer >= 0, got -1\."),
        ("TEST.DETECTIONS_PER_IMAGE", 0, r"must be an integer >= 1 or -1, got 0\."),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.5, r"must be a number in \[0, 1\]; got 1.5\."),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", -0.5, r"must be a number >= 0, got -0.5\."),
        ("MODEL.ROI_HEADS.POSITIVE_FRACTION", 2.0, r"must be a number in \[0, 1\]; got 2.0\."),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 0, r"must be an integer >= 1, got 0\."),
        ("MODEL.ROI_HEADS.IOU_LABELS", [0, 1, 1], r"must have one entry more than .*, 2; got 3\."),
        ("MODEL.RPN.IOU_THRESHOLDS", [0.7, 0.3], r"must be ascending, got \[0.7, 0.3\]\."),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], r"\[1\] must be a number > 0, got 0.0\."),
        ("MODEL.PIXEL_STD", [1.0], r"must have length 3, one entry per channel of .* BGR; got 1\."),
        (
            "MODEL.ANCHOR_GENERATOR.SIZES",
            [[32], [-64]],
            r"\[1\]\[0\] must be a number > 0, got -64\.",
        ),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [], r"must be a non-empty list, got \[\]\."),
        (
            "MODEL.ROI_BOX_CASCADE_HEAD.IOUS",
            (0.5, 0.6),
            "must have as many entries as .*, 3; got 2.",
        ),
        (
            "MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS",
            [1.0, 0.5],
            "must be empty, or have as many entries as .*, 3; got 2.",
        ),
        ("MODEL.RPN.LOW_QUALITY_IOU", 0.0, r"must be None or a number in \(0, 1\]; got 0.0\."),
        (
            "MODEL.RPN.LOW_QUALITY_IOU",
            0.3,
            "must be None with MODEL.PROPOSAL_GENERATOR.NAME RPN, got 0.3; set .* to APARPN.",
        ),
        ("DATALOADER.REPEAT_ROUNDING", "down", r"must be stochastic or up, got 'down'\."),
        (
            "MODEL.BACKBONE.NAME",
            "resnet",
            "must be one of build_apa_.*; got 'resnet'. .*--import .*",
        ),
        ("MODEL.RESNETS.DEPTH", 49, "must be one of 18, 34, 50, 101, 152; got 49 with .*"),
        ("MODEL.RESNETS.NORM", "EvalBN", "must be one of .*; got 'EvalBN' with .*"),  # ours only
        ("MODEL.DEVICE", "gpu", r"must be a device of PyTorch such as cuda or cpu, got 'gpu'\."),
        ("MODEL.WEIGHTS", None, r"must be a string, got None\."),
        ("INPUT.FORMAT", "GREY", r"must be BGR, RGB, .*; got 'GREY'\."),
        ("INPUT.MASK_FORMAT", "rle", r"must be polygon or bitmask, got 'rle'\."),
        ("INPUT.MIN_SIZE_TRAIN", (-1,), r"\[0\] must be an integer >= 0, got -1\."),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "all", r"must be choice or range, got 'all'\."),
        ("INPUT.CROP.SIZE", [300.0, 300.0], r"must be fractions in \(0, 1\] with .*"),
        ("DATALOADER.NUM_WORKERS", -1, r"must be an integer >= 0, got -1\."),
        ("DATALOADER.REPEAT_THRESHOLD", -0.1, r"must be a number >= 0, got -0.1\."),
        ("DATALOADER.SAMPLER_TRAIN", "Balanced", "must be one of ClassAware.*; got 'Balanced'.*"),
        ("SEED", 2**32, r"must be an integer <= 4294967295, got 4294967296\."),
        ("MODEL.MASK_ON", 1, r"must be True or False, got 1\."),
    ],
)
def test_nonsense(default, key, value, sentence):
    with pytest.raises(UserError) as error:
        check_values(with_value(default, key, value))
    assert re.fullmatch(re.escape(key) + " ?" + sentence, str(error.value)), error.value


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.BASE_LR", 0.0),
        ("SOLVER.STEPS", ()),
        ("SOLVER.STEPS", (0, 10, 10)),
        ("SOLVER.CHECKPOINT_PERIOD", 10**12),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", float("inf")),
        ("TEST.EVAL_PERIOD", 0),
        ("TEST.DETECTIONS_PER_IMAGE", -1),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.1),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [32, 64.5]),
        ("MODEL.DEVICE", "cuda:3"),
        ("INPUT.MIN_SIZE_TEST", 0),
        ("SEED", -5),
        (f"{BOX_HEAD}.CLASS_WEIGHTS", "weights.json"),
    ],
)
def test_values_with_a_meaning_pass(default, key, value):
    check_values(with_value(default, key, value))


def test_formats_with_other_channels(default):
    cfg = with_value(default, "INPUT.FORMAT", "L")
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [128.0], [1.0]
    check_values(cfg)


def test_cosine_schedule(default):
    cfg = with_value(default, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR")
    check_values(cfg)
    with pytest.raises(UserError, match="SOLVER.BASE_LR must be > 0 .* got 0.0 and 0.0"):
        check_values(with_value(cfg, "SOLVER.BASE_LR", 0.0))


def test_own_components_pass(default):
    cfg = with_value(default, "MODEL.APA.ACTIVATION", "tanh_of_the_user")
    with pytest.raises(UserError, match="--import with the module that registers it"):
        check_values(cfg)
    ACTIVATION_REGISTRY._do_register("tanh_of_the_user", lambda num_channels, **_: None)
    try:
        check_values(cfg)
    finally:
        del ACTIVATION_REGISTRY._obj_map["tanh_of_the_user"]


def test_missing_keys(default):
    cfg = default.clone()
    cfg.SOLVER.EMA = CfgNode()
    with pytest.raises(UserError, match="The config has no key SOLVER.EMA.ENABLED: override"):
        check_values(cfg)


def is_number(value):
    return type(value) in (int, float) and value == value and abs(value) < float("inf")


def has_type_of(value, default):
    """Whether a value could stand for a default."""
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    if isinstance(default, bool | str):
        return type(value) is type(default)
    return type(value) is int if isinstance(default, int) else is_number(value)


def optional(key, default):
    names = ("CLASS_WEIGHTS", "WEIGHT_DECAY_NORM", "BIAS_LR_FACTOR", "NORM_TYPE")
    return default is None or key.rpartition(".")[2] in names


@settings(max_examples=400, deadline=None)
@given(key=st.sampled_from(sorted(yaml_kinds())), value=plain)
def test_any_value_is_accepted_or_one_sentence(default, key, value):
    cfg = default.clone()
    node = cfg
    *nodes, name = key.split(".")
    for part in nodes:
        node = node[part]
    before = node[name]
    dict.__setitem__(node, name, value)
    try:
        check_values(cfg)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        assert str(error).startswith(key) or "MODEL.PIXEL" in str(error) or " with " in str(error)
    else:
        assert has_type_of(value, before) or optional(key, before), (key, value)


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from(sorted(yaml_kinds())) | st.text("AB.", max_size=5),
    value=plain.map(lambda v: repr(v) if not isinstance(v, str) else v) | st.text(max_size=9),
)
def test_any_override_is_accepted_or_one_sentence(key, value):
    try:
        check_values(read_config("", [key, value]))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
