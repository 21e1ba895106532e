"""Each lazy config equals its yaml: model, data, optimizer and schedule."""

import inspect
from functools import cache
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import ListConfig
from torch import Tensor

from apa_det import AGLU, add_apa_config
from apa_det.config import check_values
from apa_det.data import APADatasetMapper, CopyPaste, build_train_loader
from apa_det.engine import build_optimizer
from apa_det.evaluation import LongTailEvaluator, V3DetEvaluator

CONFIGS = Path(__file__).parents[1] / "configs"
LVIS = "LVISv1-InstanceSegmentation"
YAMLS = sorted(
    path
    for path in CONFIGS.rglob("*.yaml")
    if not path.name.startswith("Base-") and path.parent.name != "Comparison"
)
NAMES = [str(path.relative_to(CONFIGS).with_suffix("")) for path in YAMLS]
VITDET = f"{LVIS}/mask_rcnn_vitdet_b_AGLU_100ep"


def load_yaml(name, device="cpu"):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    cfg.MODEL.DEVICE = device
    return cfg


def load_lazy(name, *overrides):
    return LazyConfig.apply_overrides(LazyConfig.load(str(CONFIGS / f"{name}.py")), overrides)


@cache
def meta_model(name):
    """The yaml's model on the meta device."""
    with torch.device("meta"):
        return build_model(load_yaml(name, "meta"))


def plain(value):
    """Convert values of both kinds of configs to a comparable form; objects to attributes."""
    if isinstance(value, (list, tuple, ListConfig)):
        return tuple(plain(v) for v in value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    if type(value).__module__.startswith(("detectron2.", "apa_det.data.")):
        return type(value), {k: plain(v) for k, v in vars(value).items()}
    return type(value)


def settings(model):
    """Return the type and all settings of every module by name."""
    modules = {}
    for name, module in model.named_modules():
        attributes = {
            key: plain(value)
            for key, value in vars(module).items()
            if not key.startswith("_") and not isinstance(value, Tensor)
        }
        modules[name] = type(module), attributes
    return modules


@pytest.mark.parametrize("name", NAMES)
def test_same_model(name):
    theirs = meta_model(name)
    with torch.device("meta"):
        ours = instantiate(load_lazy(name).model)
    states = [{k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert list(states[0].items()) == list(states[1].items())
    trainable = [
        [n for n, p in model.named_parameters() if p.requires_grad] for model in (ours, theirs)
    ]
    assert trainable[0] == trainable[1]
    assert settings(ours) == settings(theirs)


def test_settings_detect_differences():
    name = "Quickstart/mask_rcnn_R_18_FPN_APA"
    for override in (
        "model.roi_heads.box_predictor.test_nms_thresh=0.4",
        "model.proposal_generator.anchor_matcher.thresholds=[0.3,0.6]",
        "model.roi_heads.mask_head.mask_threshold=0.4",
    ):
        with torch.device("meta"):
            model = instantiate(load_lazy(name).model)
            other = instantiate(load_lazy(name, override).model)
        assert settings(model) != settings(other), override


def optimizer_groups(model, optimizer):
    """Return the optimizer settings of each parameter."""
    names = {p: name for name, p in model.named_parameters()}
    other = ("params", "foreach")  # foreach affects only speed
    return {
        names[p]: {k: plain(v) for k, v in group.items() if k not in other}
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("name", NAMES)
def test_same_training(name):
    cfg, lazy, model = load_yaml(name), load_lazy(name), meta_model(name)
    check_values(lazy)
    optimizer = build_optimizer(cfg, model)
    lazy.optimizer.params.model = model
    lazy_optimizer = instantiate(lazy.optimizer)
    assert type(lazy_optimizer) is type(optimizer)
    assert optimizer_groups(model, lazy_optimizer) == optimizer_groups(model, optimizer)

    train, solver = lazy.train, cfg.SOLVER
    assert (train.max_iter, train.amp.enabled) == (solver.MAX_ITER, solver.AMP.ENABLED)
    assert (train.init_checkpoint, train.eval_period) == (cfg.MODEL.WEIGHTS, cfg.TEST.EVAL_PERIOD)
    assert (train.apa_log_period, train.seed) == (cfg.MODEL.APA.LOG_PERIOD, cfg.SEED)
    assert train.checkpointer.period == solver.CHECKPOINT_PERIOD
    assert (train.accumulate, train.ema.decay) == (solver.ACCUMULATE, solver.EMA.DECAY)
    assert (train.fsdp, train.reference_world_size) == (solver.FSDP, solver.REFERENCE_WORLD_SIZE)
    assert (train.eval_subset, train.imports) == (cfg.TEST.SUBSET, cfg.IMPORTS)
    for node, key in ((train.test_augmentation, "AUG"), (train.precise_bn, "PRECISE_BN")):
        assert {name.upper(): plain(value) for name, value in node.items()} == dict(cfg.TEST[key])
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED:
        expected = {"clip_type": clip.CLIP_TYPE, "clip_value": clip.CLIP_VALUE}
        assert train.clip_gradients == {**expected, "norm_type": clip.NORM_TYPE}
    else:
        assert not train.clip_gradients.clip_type

    multiplier = instantiate(lazy.lr_multiplier)
    scheduler = build_lr_scheduler(cfg, optimizer)
    end = solver.MAX_ITER
    iterations = [0, 1, solver.WARMUP_ITERS // 2, solver.WARMUP_ITERS, end - 1]
    for i in iterations + [step + k for step in solver.STEPS for k in (-1, 0, 1)]:
        expected = scheduler._multiplier(i / end)
        assert multiplier(i / end) == pytest.approx(expected, rel=1e-12), i


def augmentations(mapper):
    result = [plain(augmentation) for augmentation in mapper.augmentations.augs]
    if not mapper.is_train:  # one size is a choice in one config, a range in the other
        result = [(kind, {**v, "is_range": None, "sample_style": None}) for kind, v in result]
    return result


@pytest.mark.parametrize("name", NAMES)
def test_same_data(name):
    cfg, loader = load_yaml(name), load_lazy(name).dataloader
    assert loader.lvis_format == cfg.DATASETS.LVIS_FORMAT
    for split, is_train in ((loader.train, True), (loader.test, False)):
        expected, mapper = APADatasetMapper(cfg, is_train), instantiate(split.mapper)
        assert augmentations(mapper) == augmentations(expected)
        keys = ["image_format", "is_train", "instance_mask_format", "recompute_boxes"]
        keys += ["use_instance_mask"] if is_train else []
        for key in keys:
            assert getattr(mapper, key) == getattr(expected, key), key
        assert split.num_workers == cfg.DATALOADER.NUM_WORKERS
    assert (loader.train.dataset.names,) == cfg.DATASETS.TRAIN
    assert (loader.test.dataset.names,) == cfg.DATASETS.TEST
    assert not loader.test.dataset.filter_empty
    assert loader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert loader.train._target_ is build_train_loader
    assert loader.train.sampler == cfg.DATALOADER.SAMPLER_TRAIN
    assert (loader.train.dataset_names,) == cfg.DATASETS.TRAIN
    if loader.train.sampler == "RepeatFactorTrainingSampler":
        assert loader.train.repeat_thresh == cfg.DATALOADER.REPEAT_THRESHOLD
    for key in ("repeat_rounding", "min_image_side", "min_box_side"):
        default = inspect.signature(build_train_loader).parameters[key].default
        assert loader.train.get(key, default) == cfg.DATALOADER[key.upper()], key
    settings = CopyPaste.of(cfg.INPUT.COPY_PASTE)
    assert CopyPaste.of(loader.train.get("copy_paste")) == settings
    assert settings.enabled == ("copy_paste" in name)
    evaluators = {"COCO": COCOEvaluator, "V3Det": V3DetEvaluator}
    evaluator = evaluators.get(name.split("-")[0], LongTailEvaluator)
    assert loader.evaluator._target_ is evaluator
    assert loader.evaluator.dataset_name == loader.test.dataset.names


def make_images(num_classes):
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:40, 4:30], masks[1, 20:60, 30:62] = True, True
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes([[4.0, 8, 30, 40], [30, 20, 62, 60]])
    instances.gt_classes = torch.tensor([0, num_classes - 1])
    instances.gt_masks = BitMasks(masks)
    image = torch.randint(256, (3, 64, 64), generator=generator).float()
    return [{"image": image, "instances": instances, "height": 64, "width": 64}]


def losses_of(model, images):
    torch.manual_seed(1)
    with EventStorage():
        return model.train()(images)


def outputs(model, images):
    losses = losses_of(model, images)
    with torch.no_grad():
        fields = model.eval()(images)[0]["instances"].get_fields()
    boxes = fields.pop("pred_boxes").tensor
    return {**losses, **fields, "pred_boxes": boxes}


@pytest.mark.parametrize(
    "name",
    [
        "Quickstart/mask_rcnn_R_18_FPN_APA",
        f"{LVIS}/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x",
        f"{LVIS}/cascade_mask_rcnn_R_50_FPN_AGLU_gate_score_1x",
        f"{LVIS}/retinanet_R_50_FPN_AGLU_gate_score_1x",
        "COCO-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_AGLU_2x",
    ],
)
def test_same_outputs(name):
    """Outputs are equal with copied weights, and weights outside the RoI heads with the same seed.

    In yaml RoI heads, detectron2 first initializes its own predictor, which draws random numbers.
    """
    cfg, lazy = load_yaml(name), load_lazy(name)
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    if "retinanet" in name:
        lazy.model.update(max_detections_per_image=5, test_score_thresh=0.0)
    else:
        heads = lazy.model.roi_heads
        for predictor in heads.box_predictors if "cascade" in name else [heads.box_predictor]:
            predictor.update(test_topk_per_image=5, test_score_thresh=0.0)
    torch.manual_seed(0)
    theirs = build_model(cfg)
    torch.manual_seed(0)
    ours = instantiate(lazy.model)
    for key, value in theirs.state_dict().items():
        if not key.startswith("roi_heads."):
            assert torch.equal(ours.state_dict()[key], value), key
    ours.load_state_dict(theirs.state_dict())
    images = make_images(4)
    expected, actual = outputs(theirs, images), outputs(ours, images)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key
    assert len(actual["scores"]) == 5


def test_vitdet_without_timm():
    lazy = load_lazy(VITDET)
    for split in (lazy.dataloader.train, lazy.dataloader.test):
        image = np.zeros((600, 900, 3), np.uint8)
        augmented = T.AugInput(image)
        instantiate(split.mapper).augmentations(augmented)
        assert max(augmented.image.shape) <= 1024
    multiplier = instantiate(lazy.lr_multiplier)
    assert [multiplier(i / 156250) for i in (0, 250, 138889, 150463)] == pytest.approx(
        [0.001, 1, 0.1, 0.01]
    )


def test_vitdet():
    """AGLU starts close to GELU, with which the weights were pretrained."""
    pytest.importorskip("timm", reason="detectron2's ViT needs timm")
    sizes = ("embed_dim=32", "depth=2", "num_heads=2", "img_size=64", "window_size=2")
    small = [f"model.backbone.net.{size}" for size in sizes]
    small += ["model.backbone.net.window_block_indexes=[0]", "model.backbone.square_pad=64"]
    lazy = load_lazy(VITDET, *small, "optimizer.params.lr_factor_func=null")
    torch.manual_seed(0)
    model = instantiate(lazy.model)
    lazy.optimizer.params.model = model
    groups = optimizer_groups(model, instantiate(lazy.optimizer))
    assert groups["backbone.net.blocks.0.mlp.act.kappa_param"]["weight_decay"] == 0
    assert groups["backbone.net.blocks.0.mlp.fc1.weight"]["weight_decay"] == 0.1
    sum(losses_of(model, make_images(4)).values()).backward()
    assert model.backbone.net.blocks[1].mlp.act.kappa_param.grad.abs().item() > 0

    lazy.model.backbone.net.act_layer = torch.nn.GELU
    theirs = instantiate(lazy.model).eval()
    theirs.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = (m.backbone.net(x)["last_feat"] for m in (model.eval(), theirs))
    torch.testing.assert_close(ours, theirs, atol=0.02 * theirs.abs().max().item(), rtol=0)


def test_swin():
    """An AGLU in each MLP, with the published initialization; the published number of weights."""
    pytest.importorskip("timm", reason="detectron2's Swin needs timm")
    lazy = load_lazy("V3Det-Detection/faster_rcnn_swin_B_FPN_AGLU_2x")
    lazy.model.model.roi_heads.num_classes = 4
    model = instantiate(lazy.model)
    curves = [m for m in model.modules() if isinstance(m, AGLU)]
    lambdas, kappas = (torch.tensor([getattr(m, n).item() for m in curves]) for n in _CURVE)
    assert len(curves) == 2 + 2 + 18 + 2 and all(m.lambda_min == 1e-8 for m in curves)
    assert 0.1 <= lambdas.min() < lambdas.max() <= 1 and 0 <= kappas.min() < kappas.max() <= 1
    # Swin-B without its classifier, as published, and two parameters per AGLU; a norm per output
    expected = 86_743_224 + 2 * 24 + 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in model.backbone.bottom_up.parameters()) == expected


_CURVE = ("lambda_param", "kappa_param")
