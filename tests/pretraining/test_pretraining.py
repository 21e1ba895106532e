"""Pretrain a classifier on a small folder of images, and load it into a detector."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from PIL import Image

from apa_det import AGLU, APA, add_apa_config
from apa_det.checkpoint import convert, load_checkpoint
from apa_det.engine.checkpointer import StrictCheckpointer
from apa_det.errors import MissingFileError, UserError
from apa_det.layers import CBAMGate, SEGate
from apa_det.pretraining.training import Settings, parameter_groups, pretrain
from apa_det_cli.pretrain_backbone import parser

CONFIG = Path(__file__).parents[2] / "configs/Quickstart/mask_rcnn_R_18_FPN_APA.yaml"
COLORS = {"blue": (40, 40, 200), "red": (200, 40, 40)}
SMALL = dict(
    model="apa_resnet18", warmup_epochs=0, batch_size=8, lr=0.02, train_size=32, val_size=32
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, color in COLORS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.normal(color, 30, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def output(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    settings = Settings(str(data), str(folder), epochs=3, workers=0, ema_decay=0.5, **SMALL)
    assert pretrain(settings) == 100.0
    return folder


def detector(gate="se"):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "EvalBN"])
    cfg.merge_from_list(["MODEL.APA.GATE", gate, "MODEL.APA.GATE_PER_CHANNEL", False])
    cfg.merge_from_list(["MODEL.APA.PER_CHANNEL", False, "MODEL.APA.LAMBDA_MIN", 1e-8])
    return build_model(cfg)


@pytest.mark.parametrize("ema", [False, True])
@torch.no_grad()
def test_features_after_conversion(output, ema):
    checkpoint = load_checkpoint(str(output / "last.pth.tar"))
    classifier = timm.create_model("apa_resnet18", num_classes=2).eval()
    classifier.load_state_dict(checkpoint["state_dict_ema" if ema else "state_dict"])
    model = detector().eval()
    conversion = convert(checkpoint, model, ema=ema)
    conversion.check()
    model.load_state_dict(conversion.state, strict=False)
    images = torch.randn(2, 3, 64, 96)
    expected = classifier.forward_features(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(model.backbone.bottom_up(images)["res5"], expected)
    if not ema:  # the file itself as MODEL.WEIGHTS
        model = detector().eval()
        StrictCheckpointer(model, strict=False).load(str(output / "last.pth.tar"))
        torch.testing.assert_close(model.backbone.bottom_up(images)["res5"], expected)


def test_another_gate_is_an_error(output):
    conversion = convert(load_checkpoint(str(output / "last.pth.tar")), detector("plain_se"))
    with pytest.raises(UserError, match=r"gate\.activation\.kappa_param is unexpected"):
        conversion.check()


def test_resume(data, output, tmp_path):
    last = str(output / "last.pth.tar")
    settings = Settings(str(data), str(tmp_path), epochs=4, workers=0, resume=last, **SMALL)
    pretrain(settings)
    assert load_checkpoint(str(tmp_path / "last.pth.tar"))["epoch"] == 3


def test_no_decay_of_lambda_and_kappa():
    model = timm.create_model("apa_resnet18", num_classes=2, gate="cbam")
    decayed, curves = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], curves["weight_decay"]) == (0.1, 0.0)
    modules = [m for m in model.modules() if isinstance(m, AGLU | APA)]
    assert len(modules) == 1 + 8 * (2 + 2)
    ids = {id(p) for p in curves["params"]}
    assert ids == {id(p) for m in modules for p in m.parameters()}
    assert len(ids) + len(decayed["params"]) == len(list(model.parameters()))


def test_initialization():
    torch.manual_seed(0)
    for gate, kind, low in (("se", SEGate, -1), ("cbam", CBAMGate, 0)):
        model = timm.create_model("apa_resnet50", num_classes=2, gate=gate)
        gates = [m.activation for m in model.modules() if isinstance(m, kind)]
        kappas = torch.cat([m.kappa_param.flatten() for m in gates])
        assert len(kappas) == 16 and low <= kappas.min() < kappas.max() <= low + 1
        kappas = [m.kappa_param for m in model.modules() if isinstance(m, AGLU)]
        kappas = torch.cat([k.flatten() for k in kappas])
        assert len(kappas) == 49 and 0.8 <= kappas.min() < kappas.max() <= 1.2


def test_schedule(data, tmp_path, caplog):
    """Warm-up from a hundredth, then a cosine over the remaining epochs. Also without mixup."""
    small = SMALL | dict(epochs=5, warmup_epochs=2, lr=0.1, mixup=0.0, batch_size=24)
    with caplog.at_level("INFO", "apa_det.pretraining.training"):
        pretrain(Settings(str(data), str(tmp_path), workers=0, **small))
    rates = [float(record.message.split()[3].rstrip(",")) for record in caplog.records]
    assert rates == pytest.approx([0.001, 0.0505, 0.1, 0.075, 0.025], rel=1e-3)


def test_flags():
    flags = vars(parser().parse_args(["data", "--output", "output"]))
    del flags["imports"]
    assert Settings(**flags) == Settings("data", "output")


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("epochs", 0, "--epochs must be an integer >= 1, got 0."),
        ("lr", float("nan"), "--lr must be a number > 0, got nan."),
        ("ema_decay", 1.0, r"--ema-decay must be a number in \[0, 1\); got 1.0."),
        ("warmup_epochs", 100, "--warmup-epochs must be less than the 100 epochs .*, got 100."),
        ("device", "gpu", "--device must be .*, got 'gpu'."),
    ],
)
def test_ranges(flag, value, message):
    with pytest.raises(UserError, match=message):
        Settings("data", "output", **{flag: value})


def test_errors(data, output, tmp_path):
    with pytest.raises(MissingFileError, match="must have the folders train and val"):
        pretrain(Settings(str(tmp_path), str(tmp_path / "out")))
    for name in ("train/a", "val/a"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match="Found 0 images in subfolders of"):
        pretrain(Settings(str(tmp_path), str(tmp_path / "out")))
    for name in ("train/b", "val/c"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="val differ: only one has 'b', 'c'"):
        pretrain(Settings(str(tmp_path), str(tmp_path / "out")))
    for size in (7, 26):
        with pytest.raises(UserError, match="must be even, and at most .* 24; got"):
            pretrain(Settings(str(data), str(tmp_path / "out"), batch_size=size))
    small = SMALL | dict(epochs=9, workers=0)
    with pytest.raises(UserError, match="--auto-augment must be a policy of timm, got 'x': .*"):
        pretrain(Settings(str(data), str(tmp_path / "out"), auto_augment="x", **small))
    with pytest.raises(MissingFileError, match="absent.pth"):
        pretrain(Settings(str(data), str(tmp_path / "out"), resume="absent.pth", **small))
    last = str(output / "last.pth.tar")
    with pytest.raises(UserError, match="--resume .* is not a last.pth.tar of a training with"):
        pretrain(Settings(str(data), str(tmp_path / "out"), resume=last, gate="cbam", **small))
