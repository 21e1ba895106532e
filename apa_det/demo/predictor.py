"""A trained model, ready for single pictures."""

from argparse import Namespace
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import nn

from ..engine import load_for_evaluation, read_config
from ..engine.evaluation import frequency_groups
from ..engine.lazy import load_lazy
from ..engine.setup.checks import require_class_counts, require_weights
from ..engine.setup.lazy import (
    dataset_names,
    is_lazy_config,
    read_calibration_datasets,
    read_lazy_config,
)
from ..engine.setup.yaml import available_device, register_datasets
from .classes import ClassInfo, class_info, class_thresholds

__all__ = ["Predictor", "build_predictor"]


class Predictor:
    """A model of detectron2's on one picture at a time.

    Args:
        model: in evaluation mode.
        augmentations: what a test loader does to a picture, such as its resize.
        image_format: the channels that the model takes, such as "RGB" or "BGR".
        classes: the model's.
        thresholds: (K,) the least score of each class that counts.

    Attributes:
        classes: as given.
    """

    def __init__(
        self,
        model: nn.Module,
        augmentations: AugmentationList,
        image_format: str,
        classes: ClassInfo,
        thresholds: np.ndarray,
    ):
        self.classes = classes
        self._model = model
        self._augmentations = augmentations
        self._image_format = image_format
        self._thresholds = torch.from_numpy(thresholds)
        for module in model.modules():  # what is less does not count, so it need not be found
            if hasattr(module, "test_score_thresh"):
                module.test_score_thresh = thresholds.min()

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """What is detected in a picture with at least the score of its class, on the CPU.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            ``pred_boxes``, ``scores`` and ``pred_classes``, and ``pred_masks`` if the model
            predicts masks, for the picture's own size; the highest scores first.

        Raises:
            ValueError: the model detects no instances.
        """
        height, width = image.shape[:2]
        resized = AugInput(convert_PIL_to_numpy(Image.fromarray(image), self._image_format))
        self._augmentations(resized)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        (output,) = self._model([{"image": tensor, "height": height, "width": width}])
        if "instances" not in output:
            raise ValueError(
                f"The model gives {', '.join(output)} and no instances: this takes detectors."
            )
        found = output["instances"].to("cpu")
        found = found[found.scores >= self._thresholds[found.pred_classes]]
        return found[found.scores.argsort(descending=True, stable=True)]


def build_predictor(config_file: str, opts: Sequence[str], thresholds: str) -> Predictor:
    """The model of a config with its trained weights.

    The classes are those of the first of ``DATASETS.TEST`` and ``DATASETS.TRAIN`` (of a LazyConfig
    ``dataloader.test`` and ``train``) that can be read, with the frequency groups of the
    evaluation. Their pictures need not be there.

    Args:
        config_file: a yaml config, or a LazyConfig.
        opts: overrides, as ``tools/train_net.py`` and ``tools/lazyconfig_train_net.py`` take them.
        thresholds: see :func:`apa_det.demo.class_thresholds`.

    Raises:
        FileNotFoundError, ValueError: something in the config, its weights or the thresholds does
            not hold.
    """
    if not PathManager.isfile(config_file):
        raise FileNotFoundError(f"There is no config file {config_file}.")
    build = _from_lazy_config if is_lazy_config(config_file) else _from_config
    return build(Namespace(config_file=config_file, opts=list(opts)), thresholds)


def _from_config(args: Namespace, thresholds: str) -> Predictor:
    cfg = read_config(args)
    register_datasets(cfg.DATASETS.LVIS_FORMAT, "DATASETS.LVIS_FORMAT")
    cfg.MODEL.DEVICE = available_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    _require_weights(cfg.MODEL.WEIGHTS, "MODEL.WEIGHTS")
    require_class_counts(cfg)
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False  # detectron2's needs the training set
    model = build_model(cfg).eval()
    classes = class_info(
        [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN],
        _num_classes(model),
        frequency_groups(cfg),
        cfg.TEST.COUNT_FROM or None,
    )
    least = class_thresholds(thresholds, classes)
    load_for_evaluation(cfg, model)
    mapper = DatasetMapper(cfg, is_train=False)
    return Predictor(model, mapper.augmentations, mapper.image_format, classes, least)


def _from_lazy_config(args: Namespace, thresholds: str) -> Predictor:
    cfg = read_lazy_config(args)
    register_datasets(cfg.dataloader.get("lvis_format", ()), "dataloader.lvis_format")
    cfg.train.device = available_device(cfg.train.device, "train.device")
    _require_weights(cfg.train.init_checkpoint, "train.init_checkpoint")
    read_calibration_datasets(cfg)
    model = load_lazy(cfg).eval()
    evaluator = cfg.dataloader.get("evaluator") or {}
    classes = class_info(
        [*dataset_names(cfg, "test"), *dataset_names(cfg, "train")],
        _num_classes(model),
        instantiate(evaluator.get("groups")),
        evaluator.get("count_from"),
    )
    least = class_thresholds(thresholds, classes)
    mapper = instantiate(cfg.dataloader.test.mapper)
    return Predictor(model, mapper.augmentations, mapper.image_format, classes, least)


def _require_weights(weights: str, key: str) -> None:
    if not weights:
        raise ValueError(f"{key} is empty: give the checkpoint of a trained model.")
    require_weights(weights, "", key, eval_only=True, resume=False)


def _num_classes(model: nn.Module) -> int:
    num_classes = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    if num_classes is None:
        raise ValueError(f"{type(model).__name__} has no num_classes: this takes detectors.")
    return num_classes
