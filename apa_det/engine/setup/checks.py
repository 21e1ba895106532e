"""Checks of a config before any work is done on it."""

import logging
import os
from collections.abc import Sequence
from urllib.parse import urlparse

import torch
import torch.distributed.fsdp
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from ...checkpoint import read_class_names
from ...config import add_apa_config
from ...data import ensure_metadata, require_dataset_files
from ...data.class_counts import class_counts
from ...data.sampling import require_train_sampler
from ...evaluation import evaluator_metric_names, load_engine, require_extra_metrics
from ...modeling import APAInjected, meta_architecture
from ...modeling.calibration import CALIBRATION_REGISTRY
from ...modeling.losses import BoxClassLoss
from ..evaluation import frequency_groups, is_long_tail

__all__ = [
    "check_config",
    "check_num_classes",
    "require_class_counts",
    "require_class_loss",
    "require_classes_of_weights",
    "require_equal_parts",
    "require_no_nccl_for_cpu",
    "require_num_classes",
    "require_weights",
    "warn_of_other_classes",
]

logger = logging.getLogger(__name__)

# Where the architectures of detectron2 keep their number of classes.
_NUM_CLASSES_KEYS = {
    "GeneralizedRCNN": "ROI_HEADS",
    "PanopticFPN": "ROI_HEADS",
    "RetinaNet": "RETINANET",
}
_COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def check_config(cfg: CfgNode, *, eval_only: bool = False, resume: bool = False) -> None:
    """Raise an error for the first thing in a config that cannot work.

    Args:
        cfg: the config, its ``DATASETS.LVIS_FORMAT`` registered.
        eval_only: evaluation alone: training datasets and solver do not matter.
        resume: as the ``--resume`` flag.

    Raises:
        FileNotFoundError: a dataset's files, or the weights, are missing.
        ValueError: anything else; the message names the key and the mend.
        ImportError: a test dataset needs an evaluation engine, and none is installed.
    """
    require_no_nccl_for_cpu(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    require_weights(
        cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, "MODEL.WEIGHTS", eval_only=eval_only, resume=resume
    )
    _check_datasets(cfg, eval_only)
    if not eval_only:
        require_train_sampler(cfg)
        require_classes_of_weights(cfg.MODEL.TRANSFER_FROM, cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
        _check_solver(cfg)
    _check_injection(cfg)
    _check_calibration(cfg)
    if eval_only:  # else when the training set has been read
        require_class_counts(cfg)
    if cfg.TEST.AUG.ENABLED and meta_architecture(cfg) != "GeneralizedRCNN":
        raise ValueError(
            "TEST.AUG.ENABLED works with MODEL.META_ARCHITECTURE GeneralizedRCNN only, "
            f"not with {meta_architecture(cfg)}: set it to False."
        )
    _check_evaluation(cfg)
    if cfg.TEST.BEST_METRIC and not eval_only:
        _check_best_metric(cfg)


def require_class_counts(cfg: CfgNode) -> None:
    """Raise an error unless a calibration finds the image counts that it goes by.

    Reads training datasets that were not read yet.

    Raises:
        FileNotFoundError, ValueError: a training dataset is missing, or does not give them.
    """
    name = cfg.MODEL.ROI_BOX_HEAD.CALIBRATION
    if not name or not CALIBRATION_REGISTRY.get(name).needs_counts:
        return
    if not cfg.DATASETS.TRAIN:
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.CALIBRATION {name} goes by the image counts of the training set, "
            "and DATASETS.TRAIN is empty: name it there."
        )
    for dataset in cfg.DATASETS.TRAIN:
        ensure_metadata(dataset)
    check_num_classes(cfg, cfg.DATASETS.TRAIN)
    class_counts(cfg.DATASETS.TRAIN)


def require_class_loss(cfg: CfgNode, model: nn.Module) -> None:
    """Raise a ValueError where the config names a class loss, and the model has none."""
    head = cfg.MODEL.ROI_BOX_HEAD
    keys = ("CLASS_LOSS", "CLASS_WEIGHTS", "USE_DROP_LOSS")
    key = next((key for key in keys if head[key]), None)
    if key is not None and not any(isinstance(m, BoxClassLoss) for m in model.modules()):
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.{key} has no effect in this model: set MODEL.ROI_HEADS.NAME to "
            "APAROIHeads or APACascadeROIHeads, or leave the key out."
        )


def check_num_classes(cfg: CfgNode, dataset_names: Sequence[str]) -> None:
    """Raise a ValueError for a dataset whose classes are not as many as the model's.

    A model of an architecture that is not detectron2's is left alone; otherwise as
    :func:`require_num_classes`.
    """
    node = _NUM_CLASSES_KEYS.get(meta_architecture(cfg))
    if node is not None:
        num_classes = cfg.MODEL[node].NUM_CLASSES
        require_num_classes(num_classes, f"MODEL.{node}.NUM_CLASSES", dataset_names)


def require_num_classes(num_classes: int, key: str, dataset_names: Sequence[str]) -> None:
    """Raise a ValueError for a dataset that has not as many classes as the config's key says.

    A dataset that does not know its classes is left alone. Reads a dataset of
    :func:`apa_det.data.register_lvis_format` that was not read yet.
    """
    for name in dataset_names:
        ensure_metadata(name)
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) != num_classes:
            raise ValueError(
                f"The dataset {name} has {len(classes)} classes, but {key} is {num_classes}: set "
                f"it to {len(classes)}."
            )


def warn_of_other_classes(train_names: Sequence[str], test_names: Sequence[str]) -> None:
    """Warn of a test dataset with other class names than the training set's, or another order.

    All must have been read.
    """
    for name in test_names if train_names else ():
        trained, tested = (
            MetadataCatalog.get(n).get("thing_classes", []) for n in (train_names[0], name)
        )
        for i, (ours, theirs) in enumerate(zip(trained, tested, strict=False)):
            if ours != theirs:
                logger.warning(
                    "Class %d is %r in %s and %r in %s: the metrics take them for the same.",
                    *(i, ours, train_names[0], theirs, name),
                )
                break


def require_no_nccl_for_cpu(device: str, key: str) -> None:
    """Raise a ValueError for several processes that train on the CPU and talk by NCCL."""
    several = comm.get_world_size() > 1
    if device == "cpu" and several and torch.distributed.get_backend() == "nccl":
        raise ValueError(
            "Several processes train on cpu only where no GPU is seen: set the environment "
            f"variable CUDA_VISIBLE_DEVICES to nothing, or {key} to cuda."
        )


def _check_injection(cfg: CfgNode) -> None:
    default = get_cfg()
    add_apa_config(default)
    name, settings = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.APA.INJECT
    if name != APAInjected.__name__ and settings != default.MODEL.APA.INJECT:
        raise ValueError(
            f"MODEL.APA.INJECT has no effect where MODEL.META_ARCHITECTURE is {name}: set that to "
            f"{APAInjected.__name__}, and MODEL.APA.INJECT.META_ARCHITECTURE to {name}."
        )


def _check_calibration(cfg: CfgNode) -> None:
    head = cfg.MODEL.ROI_BOX_HEAD
    if not head.CALIBRATION:
        return
    key = f"MODEL.ROI_BOX_HEAD.CALIBRATION {head.CALIBRATION}"
    if head.CALIBRATION not in CALIBRATION_REGISTRY:
        known = ", ".join(sorted(name for name, _ in CALIBRATION_REGISTRY))
        raise ValueError(f"{key} is none of {known}.")
    heads = cfg.MODEL.ROI_HEADS.NAME
    if meta_architecture(cfg) in ("RetinaNet", "FCOS"):
        raise ValueError(f"{key} is for detectors with RoI heads: leave it empty.")
    if ROI_HEADS_REGISTRY.get(heads).__module__.startswith("detectron2."):
        raise ValueError(
            f"{key} has no effect on {heads}: set MODEL.ROI_HEADS.NAME to APAROIHeads or "
            "APACascadeROIHeads."
        )
    if not head.CALIBRATION_STRENGTH:
        raise ValueError(
            f"{key} has no effect while MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH is 0: give a "
            "number, such as tools/calibrate.py fits."
        )


def _check_solver(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    processes = solver.REFERENCE_WORLD_SIZE or comm.get_world_size()
    require_equal_parts(
        *(solver.IMS_PER_BATCH, "SOLVER.IMS_PER_BATCH", solver.ACCUMULATE, "SOLVER.ACCUMULATE"),
        processes,
        of=" of SOLVER.REFERENCE_WORLD_SIZE" if solver.REFERENCE_WORLD_SIZE else "",
    )
    if not 0 <= solver.EMA.DECAY < 1:
        raise ValueError(f"SOLVER.EMA.DECAY is from 0 to below 1, not {solver.EMA.DECAY}.")
    if solver.EMA.ENABLED and cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError(
            "TEST.PRECISE_BN.ENABLED computes statistics for the weights that train, and "
            "SOLVER.EMA.ENABLED evaluates averaged ones: set one of the two to False."
        )
    if solver.FSDP and not hasattr(torch.distributed.fsdp, "fully_shard"):
        raise ValueError(f"SOLVER.FSDP needs torch 2.6 or later, and this is {torch.__version__}.")
    if solver.FSDP and solver.FIND_UNUSED_PARAMETERS:
        raise ValueError(
            "SOLVER.FIND_UNUSED_PARAMETERS does not work with SOLVER.FSDP: set one to False."
        )


def require_equal_parts(
    batch: int | None, batch_key: str, parts: int, parts_key: str, processes: int, *, of: str = ""
) -> None:
    """Raise a ValueError unless all processes can split the pictures of a step into equal parts.

    Args:
        batch: the pictures of a step; None: they are not known.
        parts: of each process.
        batch_key, parts_key: the config's keys.
        processes: their number.
        of: where that number comes from, for the error.
    """
    if parts < 1:
        raise ValueError(f"{parts_key} is at least 1, not {parts}.")
    if batch is not None and (batch < 1 or batch % (processes * parts)):
        raise ValueError(
            f"{batch_key} is {batch}, the pictures of a step, which {processes} processes{of} take "
            f"in {parts_key} {parts} parts each: make it a multiple of {processes * parts}."
        )


def require_weights(
    weights: str, output_dir: str, key: str, *, eval_only: bool, resume: bool
) -> None:
    """Raise an error unless the checkpoint to start from, or to resume from, is there.

    Args:
        weights: its path, URL or name, or "".
        output_dir: the folder of checkpoints to resume from.
        key: the config's key of ``weights``.
        eval_only, resume: as the flags.

    Raises:
        FileNotFoundError, ValueError: it is missing, or evaluation needs one.
    """
    last = os.path.join(output_dir, "last_checkpoint")
    if resume and PathManager.isfile(last):
        with PathManager.open(last) as f:
            path = os.path.join(output_dir, f.read().strip())
        if not PathManager.isfile(path):
            raise FileNotFoundError(
                f"{last} names {path} to resume from, which does not exist: write the name of one "
                "of that folder's checkpoints into it, or delete it to start anew."
            )
        return
    if eval_only and not weights:
        raise ValueError(f"--eval-only needs a checkpoint to evaluate: give its file as {key}.")
    url = urlparse(weights)
    if not url.scheme and url.path and not PathManager.isfile(url.path):
        raise FileNotFoundError(
            f"{key} is {url.path}, and there is no such file: give the path of a checkpoint, or "
            '"" to train from random weights.'
        )


def require_classes_of_weights(source: str, weights: str, key: str) -> None:
    """Raise an error unless the classes of a checkpoint to transfer from are known.

    Args:
        source: as ``MODEL.TRANSFER_FROM``.
        weights: the checkpoint, or "".
        key: the config's key of ``weights``.

    Raises:
        FileNotFoundError, ValueError: see :func:`apa_det.checkpoint.read_class_names`.
    """
    if source and not weights:
        raise ValueError(
            f"MODEL.TRANSFER_FROM is {source}, and there is no checkpoint to transfer from: give "
            f"its file as {key}."
        )
    if source not in ("", "checkpoint"):  # what the file holds is seen when it is read
        read_class_names(source, {})


def _check_datasets(cfg: CfgNode, eval_only: bool) -> None:
    for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        names = cfg.DATASETS[split]
        if not names and (split == "TRAIN" or eval_only):
            raise ValueError(f"DATASETS.{split} is empty: name a dataset.")
        for name in names:
            require_dataset_files(name)
    check_num_classes(cfg, cfg.DATASETS.TEST)
    if not eval_only:  # to read the others takes long: the trainer checks them when it has
        known = [n for n in cfg.DATASETS.TRAIN if MetadataCatalog.get(n).get("thing_classes")]
        check_num_classes(cfg, known)
    if cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS and cfg.DATASETS.TRAIN:
        ensure_metadata(cfg.DATASETS.TRAIN[0])  # building the model needs its class_image_count


def _check_evaluation(cfg: CfgNode) -> None:
    require_extra_metrics(cfg.TEST.EXTRA_METRICS, "TEST.EXTRA_METRICS")
    frequency_groups(cfg)
    if cfg.TEST.COUNT_FROM:
        require_dataset_files(cfg.TEST.COUNT_FROM)
    for name in cfg.DATASETS.TEST:
        if is_long_tail(cfg, name):
            boundary = "boundary" in cfg.TEST.EXTRA_METRICS
            load_engine(cfg.TEST.ENGINE, "boundary" if boundary else "bbox")
        elif cfg.TEST.SUBSET:
            raise ValueError(
                f"TEST.SUBSET needs datasets of LVIS format, and {name} is none: for one of COCO "
                "format add TEST.LONG_TAIL True, else set TEST.SUBSET to 0."
            )


def _check_best_metric(cfg: CfgNode) -> None:
    tasks = ["bbox", "segm"] if cfg.MODEL.MASK_ON else ["bbox"]
    names = []
    for dataset in cfg.DATASETS.TEST:
        prefix = f"{dataset}/" if len(cfg.DATASETS.TEST) > 1 else ""
        if is_long_tail(cfg, dataset):
            groups, extra = frequency_groups(cfg), cfg.TEST.EXTRA_METRICS
            metrics = evaluator_metric_names(groups.names if groups else ("r", "c", "f"), extra)
            boundary = ["boundary"] if "boundary" in extra and cfg.MODEL.MASK_ON else []
            if cfg.TEST.SUBSET:  # the whole set is evaluated at the end only
                prefix += "subset/"
            names += [f"{prefix}{task}/{name}" for task in tasks + boundary for name in metrics]
        elif MetadataCatalog.get(dataset).get("evaluator_type") in ("coco", "v3det"):
            names += [f"{prefix}{task}/{name}" for task in tasks for name in _COCO_METRICS]
        else:
            return  # an evaluator with metrics of its own
    if cfg.TEST.BEST_METRIC not in names:
        raise ValueError(
            f"TEST.BEST_METRIC {cfg.TEST.BEST_METRIC} is no metric of this evaluation: "
            + (f"choose one of {', '.join(names)}." if names else "DATASETS.TEST is empty.")
        )
