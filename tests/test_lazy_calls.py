"""Every class works as a LazyCall of plain arguments, also after a round trip through yaml."""

import itertools
from functools import partial

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.solver import get_default_optimizer_params
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig, OmegaConf
from torch import nn

from apa_det import AGLU, APA, add_apa_config
from apa_det.data import (
    build_train_loader,
    load_lvis_format,
    register_lvis_format,
)
from apa_det.engine import build_optimizer
from apa_det.engine.optimizer import clip_gradients
from apa_det.evaluation import FrequencyGroups, LongTailEvaluator, V3DetEvaluator
from apa_det.layers import (
    CARAFE,
    CBAMGate,
    EvalBatchNorm2d,
    NormedConv2d,
    NormedLinear,
    SEGate,
    WrappedCauchyLinear,
    get_activation,
    get_gate,
)
from apa_det.modeling import (
    APABasicBlock,
    APABasicStem,
    APABottleneckBlock,
    APAFastRCNNConvFCHead,
    APAFastRCNNOutputLayers,
    APAMaskRCNNConvUpsampleHead,
    make_apa_resnet,
)
from apa_det.modeling.losses import DropLoss

from .conftest import tiny_datasets

IMAGE, FEATURES, VECTORS = (2, 3, 32, 32), (2, 32, 8, 8), (4, 32)
ROI = ShapeSpec(channels=32, height=8, width=8)
SCALED_SIGMOID = partial(APA, lambda_range=(1.0, 1.0), kappa_range=(2.0, 2.0))
PER_CHANNEL = partial(get_activation, "aglu", per_channel=True, kappa_range=(1.0, 1.0))
SMALL_GATE = partial(get_gate, "cbam", reduction=4, dropout=0.0, norm="EvalBN")

CALLS = [
    (APA, dict(num_channels=32, lambda_range=[0.5, 1.0], lambda_min=0.1), FEATURES),
    (AGLU, dict(kappa_range=(1.0, 2.0)), FEATURES),
    (get_activation, dict(activation="aglu", num_channels=32, per_channel=True), FEATURES),
    (get_gate, dict(gate="se", num_channels=32, reduction=4), FEATURES),
    (SEGate, dict(num_channels=32, activation=SCALED_SIGMOID, dropout=0.0), FEATURES),
    (CBAMGate, dict(num_channels=32, activation="sigmoid", norm="EvalBN"), FEATURES),
    (CARAFE, dict(num_channels=32, compressed_channels=4), FEATURES),
    (EvalBatchNorm2d, dict(num_features=32), FEATURES),
    (NormedLinear, dict(in_features=32, out_features=5, temperature=3.0), VECTORS),
    (NormedConv2d, dict(in_channels=32, out_channels=5, kernel_size=1), FEATURES),
    (WrappedCauchyLinear, dict(in_features=32, out_features=5), VECTORS),
    (APABasicStem, dict(out_channels=8, norm="EvalBN", activation="aglu"), IMAGE),
    (
        APABasicBlock,
        dict(in_channels=32, out_channels=8, norm="EvalBN", activation=PER_CHANNEL),
        FEATURES,
    ),
    (
        APABottleneckBlock,
        dict(
            in_channels=32, out_channels=16, bottleneck_channels=8, norm="EvalBN", gate=SMALL_GATE
        ),
        FEATURES,
    ),
    (make_apa_resnet, dict(depth=18, activation=PER_CHANNEL, gate=SMALL_GATE), IMAGE),
    (
        make_apa_resnet,
        dict(
            depth=50,
            res2_out_channels=32,
            width_per_group=2,
            num_groups=4,
            stem_out_channels=8,
            norm="EvalBN",
            activation="aglu",
            gate="se",
            res5_dilation=2,
            out_features=["stem", "res4"],
            freeze_at=2,
        ),
        IMAGE,
    ),
    (
        ResNet,
        dict(
            stem=L(APABasicStem)(activation="silu"),
            stages=L(ResNet.make_default_stages)(
                depth=18, block_class=APABasicBlock, activation="aglu", gate="se", norm="EvalBN"
            ),
            out_features=["res3"],
        ),
        IMAGE,
    ),
    (
        APAFastRCNNConvFCHead,
        dict(
            input_shape=ROI,
            conv_dims=[8],
            fc_dims=[16, 16],
            activation="aglu",
            roi_gate="se",
            fc_gate=partial(SEGate, reduction=2),
        ),
        FEATURES,
    ),
    (
        APAFastRCNNOutputLayers,
        dict(
            input_shape=ShapeSpec(channels=32),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes=5,
            class_score="apa",
            score_per_class=True,
            class_loss=L(DropLoss)(num_classes=5, datasets=["lvis_v1_train"]),
        ),
        VECTORS,
    ),
]


def saved(call, folder):
    """Return the call after a round trip through a yaml file."""
    path = str(folder / "config.yaml")
    LazyConfig.save(OmegaConf.create({"call": call}, flags={"allow_objects": True}), path)
    assert not (folder / "config.yaml.pkl").exists()
    return LazyConfig.load(path).call


def tensors(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return list(outputs.values()) if isinstance(outputs, dict) else list(outputs)


@pytest.mark.parametrize("target,args,shape", CALLS)
def test_modules(target, args, shape, tmp_path):
    call = L(target)(**args)
    plain = {k: instantiate(v) if isinstance(v, DictConfig) else v for k, v in args.items()}
    expected = target(**plain).eval()
    x = torch.randn(shape)
    for module in (instantiate(call).eval(), instantiate(saved(call, tmp_path)).eval()):
        assert list(module.state_dict()) == list(expected.state_dict())
        module.load_state_dict(expected.state_dict())
        for ours, theirs in zip(tensors(module(x)), tensors(expected(x)), strict=True):
            assert torch.equal(ours, theirs)


def test_mask_head(tmp_path):
    call = L(APAMaskRCNNConvUpsampleHead)(
        input_shape=ROI,
        num_classes=5,
        conv_dims=[32, 32],
        activation="aglu",
        upsample="carafe",
        predictor="normed",
        mask_threshold=0.4,
    )
    head = instantiate(saved(call, tmp_path))
    assert head.mask_threshold == 0.4 and isinstance(head.upsample, CARAFE)
    assert head.layers(torch.randn(FEATURES)).shape == (2, 5, 16, 16)


@pytest.fixture
def registered(tiny_dataset):
    """Register the tiny dataset, and return its folder."""
    for entry in tiny_datasets(tiny_dataset):
        register_lvis_format(*entry)
    return tiny_dataset


def test_loader(registered, tmp_path):
    """Images come in the order of detectron2's sampler, repeated ones included."""
    call = L(build_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="tiny_train"),
        mapper=L(DatasetMapper)(is_train=True, augmentations=[], image_format="RGB"),
        sampler="RepeatFactorTrainingSampler",
        repeat_thresh=0.9,
        dataset_names="${.dataset.names}",
        total_batch_size=2,
        seed=3,
        aspect_ratio_grouping=False,
    )
    loader = instantiate(saved(call, tmp_path))
    batches = itertools.islice(loader, 20)
    seen = [image["image_id"] for batch in batches for image in batch]
    records = get_detection_dataset_dicts("tiny_train")
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.9)
    assert factors.max() > 1
    order = iter(RepeatFactorTrainingSampler(factors, seed=3))
    assert seen == [records[next(order)]["image_id"] for _ in seen]


def test_dataset(registered, tmp_path):
    call = L(load_lvis_format)(json_file=str(registered / "val.json"), image_root=str(registered))
    assert list(instantiate(saved(call, tmp_path))) == get_detection_dataset_dicts(
        "tiny_val", filter_empty=False
    )


def test_evaluators(registered, tmp_path):
    call = L(LongTailEvaluator)(
        dataset_name="tiny_val",
        groups=L(FrequencyGroups.parse)(text="few:3,many"),
        extra_metrics=["AR"],
        engine="lvis",
        count_from="tiny_train",
    )
    evaluator = instantiate(saved(call, tmp_path))
    evaluator.reset()
    instances = Instances((64, 64), pred_boxes=Boxes(torch.tensor([[4.0, 4, 40, 40]])))
    instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    image_id = get_detection_dataset_dicts("tiny_val", filter_empty=False)[0]["image_id"]
    evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    assert {"AP", "APfew", "ARmany@300"} <= set(evaluator.evaluate()["bbox"])
    call = L(V3DetEvaluator)(dataset_name="tiny_val", max_dets_per_image=100)
    assert isinstance(instantiate(saved(call, tmp_path)), V3DetEvaluator)


def test_weight_decay_of_lambda_and_kappa():
    """detectron2's ``overrides`` have the effect of ``MODEL.APA.WEIGHT_DECAY``."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), AGLU(8), SEGate(8))
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.APA.WEIGHT_DECAY = 0.0
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.1, 0.01, 0.02
    decay = {"weight_decay": 0.0}
    call = L(torch.optim.SGD)(
        params=L(get_default_optimizer_params)(
            weight_decay_norm=0.02, overrides={"lambda_param": decay, "kappa_param": decay}
        ),
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
    )
    call.params.model = model

    def decays(optimizer):
        return {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}

    decay_of = decays(instantiate(call))
    assert decay_of == decays(build_optimizer(cfg, model))
    assert decay_of[model[2].kappa_param] == 0 and decay_of[model[0].weight] == 0.01


def test_clip_gradients():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = instantiate(L(torch.optim.SGD)(params=[parameter], lr=1.0))
    clip_gradients(optimizer, clip_type="value", clip_value=0.5)
    parameter.grad = torch.tensor([2.0, -0.1])
    optimizer.step()
    assert parameter.tolist() == pytest.approx([-0.5, 0.1])
    with pytest.raises(ValueError, match="clip_type must be one of .* full_model; got 'all'"):
        clip_gradients(optimizer, "all", 1.0)
