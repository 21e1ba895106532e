"""The training loop of a classifier. Data, augmentation, schedule and EMA are timm's."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import (
    CheckpointSaver,
    ModelEmaV3,
    accuracy,
    distribute_bn,
    random_seed,
    reduce_tensor,
)
from timm.utils.distributed import init_distributed_device_so
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..checkpoint import load_checkpoint
from ..config.detectron2_keys import DETECTRON2_KINDS
from ..config.kinds import either, integer, number, one_of
from ..errors import MissingFileError, UserError
from ..text import listed
from ..utils.writable import require_writable_folder

logger = logging.getLogger(__name__)

_KINDS = {
    "epochs": integer(">= 1"),
    "warmup_epochs": integer(">= 0"),
    "batch_size": integer(">= 2"),
    "lr": number("> 0"),
    "weight_decay": number(">= 0"),
    "momentum": number("in [0, 1)"),
    "mixup": number(">= 0"),
    "cutmix": number(">= 0"),
    "label_smoothing": number("in [0, 1)"),
    "train_size": integer(">= 1"),
    "val_size": integer(">= 1"),
    "ema_decay": number("in [0, 1)"),
    "workers": integer(">= 0"),
    "seed": integer("in [0, 4294967295]"),
    "device": either(one_of(""), DETECTRON2_KINDS["MODEL.DEVICE"]),
}


@dataclass
class Settings:
    """Settings of :func:`pretrain`; the flags of ``apa-det pretrain`` describe them.

    The defaults are the published recipe for ImageNet-1k, with 4 processes.

    Raises:
        UserError: a value is out of range; the message names the flag.
    """

    data: str
    output: str
    model: str = "apa_resnet50"
    activation: str = "aglu"
    gate: str = "se"
    epochs: int = 100
    warmup_epochs: int = 3
    batch_size: int = 64
    lr: float = 0.256
    weight_decay: float = 6.103515625e-05
    momentum: float = 0.875
    mixup: float = 0.2
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    auto_augment: str = "original"
    train_size: int = 192
    val_size: int = 224
    ema_decay: float = 0.0
    amp: bool = False
    workers: int = 4
    seed: int = 0
    device: str = ""
    resume: str = ""

    def __post_init__(self):
        for name, kind in _KINDS.items():
            if fault := kind.fault(getattr(self, name)):
                raise UserError(f"--{name.replace('_', '-')}{fault}.")
        if self.warmup_epochs >= self.epochs:
            raise UserError(
                f"--warmup-epochs must be less than the {self.epochs} epochs of --epochs, got "
                f"{self.warmup_epochs}."
            )


def pretrain(settings: Settings) -> float:
    """Train a classifier on folders of images, one per class, in ``train`` and ``val``.

    Writes timm's checkpoints ``last.pth.tar`` and ``model_best.pth.tar`` to the output folder.
    Started by torchrun, it trains with several processes.

    Returns:
        The best top-1 accuracy on ``val``, in percent.

    Raises:
        MissingFileError: a folder or the checkpoint does not exist.
        UserError: the classes of the two folders differ, a setting is invalid, or the loss is not
            finite.
    """
    info = init_distributed_device_so(
        settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    )
    device, distributed = torch.device(info["device"]), info["distributed"]
    random_seed(settings.seed, info["global_rank"])
    require_writable_folder(settings.output)
    train_loader, val_loader, num_classes = _loaders(settings, device, distributed)
    model = timm.create_model(
        settings.model,
        num_classes=num_classes,
        activation=settings.activation,
        gate=settings.gate,
    ).to(device)
    optimizer = create_optimizer_v2(
        parameter_groups(model, settings.weight_decay),
        opt="momentum",  # SGD without Nesterov
        lr=settings.lr,
        momentum=settings.momentum,
    )
    ema = ModelEmaV3(model, decay=settings.ema_decay) if settings.ema_decay else None
    start = _resume(settings.resume, model, optimizer, ema) if settings.resume else 0
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=settings.epochs - settings.warmup_epochs,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=0.01 * settings.lr,
        warmup_prefix=True,
    )
    scheduler.step(start)
    saver = None
    if info["global_rank"] == 0:
        os.makedirs(settings.output, exist_ok=True)
        saver = CheckpointSaver(
            model, optimizer, model_ema=ema, checkpoint_dir=settings.output, max_history=1
        )
    step = _Step(settings, model, optimizer, ema, num_classes, distributed)
    best = 0.0
    for epoch in range(start, settings.epochs):
        if distributed:
            train_loader.sampler.set_epoch(epoch)
        model.train()
        loss = sum(step(*batch) for batch in train_loader) / len(train_loader)
        if distributed:
            for network in (model, ema) if ema else (model,):
                distribute_bn(network, info["world_size"], True)
        top1 = _evaluate(ema.module if ema else model, val_loader, device, info)
        best = max(best, top1)
        if saver is not None:
            logger.info(
                "Epoch %d: lr %.4g, loss %.4f, top-1 %.2f %%.",
                *(epoch, optimizer.param_groups[0]["lr"], loss, top1),
            )
            saver.save_checkpoint(epoch, metric=top1)
        scheduler.step(epoch + 1)
    return best


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return optimizer groups in which λ and κ have no weight decay."""
    curves, others = [], []
    for name, parameter in model.named_parameters():
        is_curve = name.endswith(("lambda_param", "kappa_param"))
        (curves if is_curve else others).append(parameter)
    return [
        {"params": others, "weight_decay": weight_decay},
        {"params": curves, "weight_decay": 0.0},
    ]


def _loaders(
    settings: Settings, device: torch.device, distributed: bool
) -> tuple[DataLoader, DataLoader, int]:
    """Return the training loader, the validation loader and the number of classes."""
    folders = [Path(settings.data, split) for split in ("train", "val")]
    classes = []
    for folder in folders:
        if not folder.is_dir():
            raise MissingFileError(
                f"{folder} does not exist. {settings.data} must have the folders train and val, "
                "each with a folder of images per class."
            )
        classes.append({path.name for path in folder.iterdir() if path.is_dir()})
    if classes[0] != classes[1]:
        raise UserError(
            f"The classes of {folders[0]} and {folders[1]} differ: only one has "
            f"{listed(sorted(classes[0] ^ classes[1]))}. Use the same folders in both."
        )
    try:
        train, val = (create_dataset("", root=str(f), search_split=False) for f in folders)
    except RuntimeError as error:  # no images
        raise UserError(f"{settings.data}: {error}") from error
    if settings.batch_size % 2 or settings.batch_size > len(train):
        raise UserError(
            "--batch-size must be even, and at most the number of training images, "
            f"{len(train)}; got {settings.batch_size}."
        )
    common = {
        "batch_size": settings.batch_size,
        "num_workers": settings.workers,
        "persistent_workers": settings.workers > 0,
        "distributed": distributed,
        "device": device,
        "use_prefetcher": False,
        "interpolation": "bilinear",
    }
    try:
        train_loader = create_loader(
            train,
            settings.train_size,
            is_training=True,
            color_jitter=0.0,
            auto_augment=settings.auto_augment or None,
            **common,
        )
    except (AssertionError, ValueError) as error:  # timm checks the policy with assert
        raise UserError(
            f"--auto-augment must be a policy of timm, got {settings.auto_augment!r}: {error}."
        ) from error
    val_loader = create_loader(val, settings.val_size, crop_pct=224 / 232, **common)
    return train_loader, val_loader, len(classes[0])


def _resume(
    path: str, model: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEmaV3 | None
) -> int:
    """Load a checkpoint of :func:`pretrain`, and return the next epoch."""
    checkpoint = load_checkpoint(path)
    try:
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        if ema is not None:
            ema.module.load_state_dict(checkpoint["state_dict_ema"])
        return checkpoint["epoch"] + 1
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"--resume {path} is not a last.pth.tar of a training with these settings ({error})."
        ) from error


class _Step:
    """An optimizer step on a batch of images and labels. Returns the loss."""

    def __init__(
        self,
        settings: Settings,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: ModelEmaV3 | None,
        num_classes: int,
        distributed: bool,
    ):
        self._model, self._optimizer, self._ema = model, optimizer, ema
        self._device = next(model.parameters()).device
        self._amp = settings.amp
        self._scaler = torch.amp.GradScaler(enabled=settings.amp and self._device.type == "cuda")
        self._mixup = Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            prob=float(settings.mixup > 0 or settings.cutmix > 0),
            label_smoothing=settings.label_smoothing,
            num_classes=num_classes,
        )
        self._criterion = SoftTargetCrossEntropy()
        self._network = model
        if distributed:
            ids = [self._device] if self._device.type == "cuda" else None
            self._network = nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def __call__(self, images: Tensor, labels: Tensor) -> float:
        images, targets = self._mixup(images.to(self._device), labels.to(self._device))
        with torch.autocast(self._device.type, enabled=self._amp):
            loss = self._criterion(self._network(images), targets)
        if not torch.isfinite(loss):
            raise UserError("The loss is not finite: lower --lr, or raise --warmup-epochs.")
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._ema is not None:
            self._ema.update(self._model)
        return loss.item()


@torch.no_grad()
def _evaluate(model: nn.Module, loader: DataLoader, device: torch.device, info: dict) -> float:
    """Return the top-1 accuracy, in percent."""
    model.eval()
    correct = torch.zeros(2, device=device)
    for images, labels in loader:
        logits, labels = model(images.to(device)), labels.to(device)
        correct += torch.stack(
            [accuracy(logits, labels)[0] * len(labels), labels.new_tensor(len(labels))]
        )
    if info["distributed"]:
        correct = reduce_tensor(correct, info["world_size"])
    return (correct[0] / correct[1]).item()
