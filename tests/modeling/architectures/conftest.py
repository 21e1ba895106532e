import logging

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from apa_det import APA, add_apa_config, restore
from apa_det.engine import StrictCheckpointer, build_optimizer

SIZE = 64


def _make_images(count=2):
    """Images with objects of classes 0 and 1, with the annotations of all tested models."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for _ in range(count):
        instances = Instances((SIZE, SIZE))
        instances.gt_boxes = Boxes(torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 62.0]]))
        instances.gt_classes = torch.tensor([0, 1])
        masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
        masks[0, 6:40, 4:30] = masks[1, 10:62, 20:60] = True
        instances.gt_masks = BitMasks(masks)
        records.append(
            {
                "image": torch.rand(3, SIZE, SIZE, generator=generator) * 255,
                "instances": instances,
                "sem_seg": masks[0].long() + 2 * (masks[1] & ~masks[0]).long(),
                "height": SIZE,
                "width": SIZE,
                "center": masks[0].float(),
                "center_weights": torch.ones(SIZE, SIZE),
                "offset": torch.zeros(2, SIZE, SIZE),
                "offset_weights": torch.ones(SIZE, SIZE),
            }
        )
    return records


def _make_cfg(base=None, *overrides, add_config=None):
    cfg = get_cfg()
    if add_config is not None:
        add_config(cfg)
    if base is not None:
        cfg.merge_from_file(model_zoo.get_config_file(base))
    add_apa_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
            *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.FPN.OUT_CHANNELS", 16),
            *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.PRE_NMS_TOPK_TEST", 50),
            *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
            *("MODEL.RETINANET.NUM_CLASSES", 2, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
            *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
            *("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.5, "TEST.DETECTIONS_PER_IMAGE", 5),
            *overrides,
        ]
    )
    return cfg


def _inject_cfg(cfg, *overrides):
    """Return the config with APA injected into its meta-architecture."""
    cfg = cfg.clone()
    cfg.MODEL.APA.INJECT.META_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE
    cfg.MODEL.META_ARCHITECTURE = "APAInjected"
    cfg.merge_from_list([*overrides])
    return cfg


def _outputs(model):
    """Return all tensors in the model's outputs, flattened and concatenated."""
    tensors = []

    def collect(value):
        if isinstance(value, torch.Tensor):
            tensors.append(value.double().flatten())
        elif isinstance(value, Instances):
            collect(value.get_fields())
        elif isinstance(value, Boxes):
            tensors.append(value.tensor.double().flatten())
        elif isinstance(value, dict):
            for item in value.values():
                collect(item)
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)

    with torch.no_grad(), EventStorage():
        collect(model.eval()(_make_images()))
    return torch.cat(tensors)


@pytest.fixture
def make_images():
    return _make_images


@pytest.fixture
def make_cfg():
    return _make_cfg


@pytest.fixture
def inject_cfg():
    return _inject_cfg


@pytest.fixture
def check_injection(tmp_path, caplog):
    """Return a function that trains a model with APA and loads checkpoints with and without APA.

    It takes functions that build the plain model and the one with APA, and returns the latter.
    """

    def check(build_plain, build):
        torch.manual_seed(0)
        model, plain = build(), build_plain()
        layers = {name: m for name, m in model.named_modules() if isinstance(m, APA)}
        new = {f"{name}.{p}" for name in layers for p in ("lambda_param", "kappa_param")}
        names, plain_names = [*model.state_dict()], [*plain.state_dict()]
        assert layers and sorted(names) == sorted([*plain_names, *new])

        optimizer = build_optimizer(_make_cfg(None, "SOLVER.BASE_LR", 1e-3), model.train())
        with EventStorage():
            losses = model(_make_images())
        losses = losses if isinstance(losses, dict) else {"loss": losses}
        total = sum(losses.values())
        assert torch.isfinite(total)
        total.backward()
        missing = {n for n, p in model.named_parameters() if p.grad is None}
        assert not missing
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        before = {name: m.lambda_param.detach().clone() for name, m in layers.items()}
        optimizer.step()
        assert any(not torch.equal(m.lambda_param, before[name]) for name, m in layers.items())

        StrictCheckpointer(model, str(tmp_path)).save("apa")
        copy = build()
        StrictCheckpointer(copy).load(str(tmp_path / "apa.pth"))
        expected = _outputs(model)
        assert torch.equal(_outputs(copy), expected)

        StrictCheckpointer(plain, str(tmp_path)).save("plain")
        with caplog.at_level(logging.WARNING):
            StrictCheckpointer(copy, strict=False).load(str(tmp_path / "plain.pth"))
        for name in layers:
            assert f"{name}.{{kappa_param, lambda_param}}" in caplog.text
        state = plain.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in copy.state_dict().items() if k in state)
        restore(copy)
        assert [*copy.state_dict()] == plain_names
        assert torch.equal(_outputs(copy), _outputs(plain))
        return model

    return check
