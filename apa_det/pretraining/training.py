"""The training loop of a classifier. Data, augmentation, schedule and EMA are timm's."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.models import resume_checkpoint
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
from torch import nn
from torch.utils.data import DataLoader

from ..errors import MissingFileError, UserError

logger = logging.getLogger(__name__)


@dataclass
class Settings:
    """Settings of :func:`pretrain`; the flags of ``apa-det pretrain`` describe them.

    The defaults are the published recipe for ImageNet-1k, with 4 processes.
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


def pretrain(settings: Settings) -> float:
    """Train a classifier on folders of images, one per class, in ``train`` and ``val``.

    Writes timm's checkpoints ``last.pth.tar`` and ``model_best.pth.tar`` to the output folder.
    Started by torchrun, it trains with several processes.

    Returns:
        The best top-1 accuracy on ``val``, in percent.

    Raises:
        MissingFileError: a folder does not exist.
        UserError: the classes of the two folders differ, or a setting is not valid.
    """
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    info = init_distributed_device_so(device)
    device, distributed = torch.device(info["device"]), info["distributed"]
    random_seed(settings.seed, info["global_rank"])
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
    scaler = torch.amp.GradScaler(enabled=settings.amp and device.type == "cuda")
    start = 0
    if settings.resume:
        if not os.path.isfile(settings.resume):
            raise MissingFileError(f"--resume {settings.resume} does not exist.")
        start = resume_checkpoint(model, settings.resume, optimizer) or 0
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=settings.epochs,
        warmup_epochs=settings.warmup_epochs,
        warmup_lr=0.01 * settings.lr,
        warmup_prefix=True,
    )
    scheduler.step(start)
    mixup = Mixup(
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        num_classes=num_classes,
    )
    network = model
    if distributed:
        ids = [device] if device.type == "cuda" else None
        network = nn.parallel.DistributedDataParallel(model, device_ids=ids)  # same weights in all
    ema = ModelEmaV3(model, decay=settings.ema_decay) if settings.ema_decay else None
    if ema is not None and settings.resume:
        _resume_average(ema, settings.resume)
    saver = None
    if info["global_rank"] == 0:
        os.makedirs(settings.output, exist_ok=True)
        saver = CheckpointSaver(
            model, optimizer, model_ema=ema, checkpoint_dir=settings.output, max_history=1
        )

    best = 0.0
    for epoch in range(start, settings.epochs):
        if distributed:
            train_loader.sampler.set_epoch(epoch)
        loss = _train_epoch(network, train_loader, optimizer, scaler, mixup, ema, device, settings)
        if distributed:
            distribute_bn(model, info["world_size"], True)
        top1 = _evaluate(model if ema is None else ema.module, val_loader, device, info)
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
    datasets = []
    for split in ("train", "val"):
        folder = Path(settings.data, split)
        if not folder.is_dir():
            raise MissingFileError(
                f"{folder} does not exist. {settings.data} must have the folders train and val, "
                "each with a folder of images per class."
            )
        datasets.append(create_dataset("", root=str(folder), split=split, search_split=False))
    train, val = datasets
    classes = [
        sorted(path.name for path in Path(settings.data, s).iterdir() if path.is_dir())
        for s in ("train", "val")
    ]
    if classes[0] != classes[1]:
        differ = sorted(set(classes[0]) ^ set(classes[1]))
        raise UserError(
            f"The classes of {settings.data}/train and val differ: {', '.join(differ[:5])}. Each "
            "needs the same folders."
        )
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
    train_loader = create_loader(
        train,
        settings.train_size,
        is_training=True,
        color_jitter=0.0,
        auto_augment=settings.auto_augment or None,
        **common,
    )
    val_loader = create_loader(val, settings.val_size, crop_pct=224 / 232, **common)
    return train_loader, val_loader, len(classes[0])


def _train_epoch(network, loader, optimizer, scaler, mixup, ema, device, settings) -> float:
    network.train()
    criterion = SoftTargetCrossEntropy()
    total = 0.0
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        images, targets = mixup(images, labels)
        with torch.autocast(device.type, enabled=settings.amp):
            loss = criterion(network(images), targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if ema is not None:
            ema.update(network.module if hasattr(network, "module") else network)
        total += loss.item()
        if not torch.isfinite(loss):
            raise UserError("The loss is not finite: lower --lr, or raise --warmup-epochs.")
    return total / len(loader)


@torch.no_grad()
def _evaluate(model: nn.Module, loader: DataLoader, device: torch.device, info: dict) -> float:
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


def _resume_average(ema: ModelEmaV3, path: str) -> None:
    average = torch.load(path, map_location="cpu", weights_only=True).get("state_dict_ema")
    if average is None:
        raise UserError(f"--resume {path} has no moving averages: set --ema-decay 0.")
    ema.module.load_state_dict(average)
