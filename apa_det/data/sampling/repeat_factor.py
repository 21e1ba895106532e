"""Repeat-factor sampling: images of rare classes are drawn more often."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import samplers
from torch import Tensor

from ...errors import UserError
from ..dataset_records import DatasetRecords
from .counts import ClassCounts, count_classes
from .registry import TRAIN_SAMPLER_REGISTRY


@TRAIN_SAMPLER_REGISTRY.register()
class RepeatFactorTrainingSampler(samplers.RepeatFactorTrainingSampler):
    """detectron2's ``RepeatFactorTrainingSampler``.

    A class in a fraction f of the images has the repeat factor max(1, √(t / f)). An image has the
    largest factor of its classes, stochastically rounded in each epoch ("LVIS", Gupta et al., CVPR
    2019, appendix B.2), or rounded up, as in mmdetection.
    """

    @configurable
    def __init__(
        self,
        dataset: Sequence[dict],
        *,
        repeat_thresh: float,
        repeat_sqrt: bool = True,
        repeat_rounding: str = "stochastic",
        seed: int | None = None,
    ):
        """
        Args:
            dataset: detectron2 dataset dicts.
            repeat_thresh: t, the fraction of the images below which a class is repeated.
            repeat_sqrt: take the square root.
            repeat_rounding: see :func:`round_factors`.
            seed: seed of the rounding and the order. None: a random one, shared by all processes.

        Raises:
            UserError: the rounding is unknown.
        """
        if isinstance(dataset, DatasetRecords):
            factors = _repeat_factors(dataset, repeat_thresh, repeat_sqrt)
        else:
            factors = self.repeat_factors_from_category_frequency(
                dataset, repeat_thresh, repeat_sqrt
            )
        super().__init__(round_factors(factors, repeat_rounding), seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {
            "dataset": dataset,
            "repeat_thresh": cfg.DATALOADER.REPEAT_THRESHOLD,
            "repeat_sqrt": cfg.DATALOADER.REPEAT_SQRT,
            "repeat_rounding": cfg.DATALOADER.REPEAT_ROUNDING,
            "seed": cfg.SEED,
        }


def _repeat_factors(dataset: DatasetRecords, repeat_thresh: float, repeat_sqrt: bool) -> Tensor:
    """Return what ``repeat_factors_from_category_frequency`` does, without building dicts."""
    counts = count_classes(dataset)
    with np.errstate(divide="ignore"):  # factors of classes without images are not used
        ratio = repeat_thresh / (counts.image_count / counts.num_images)
    return _largest_of_classes(counts, np.maximum(1, np.sqrt(ratio) if repeat_sqrt else ratio))


def _largest_of_classes(counts: ClassCounts, by_class: np.ndarray) -> Tensor:
    factors = np.ones(counts.num_images)
    np.maximum.at(factors, counts.images, by_class[counts.classes])
    return torch.from_numpy(factors).float()


def round_factors(factors: Tensor, rounding: str) -> Tensor:
    """Prepare repeat factors for detectron2's sampler, which rounds stochastically in each epoch.

    Args:
        factors: shape (N,).
        rounding: "stochastic", which changes nothing; or "up", so that each epoch has the same
            images.

    Raises:
        UserError: the rounding is unknown.
    """
    if rounding not in ("stochastic", "up"):
        raise UserError(
            "DATALOADER.REPEAT_ROUNDING (repeat_rounding in a LazyConfig) must be stochastic or "
            f"up; got {rounding!r}."
        )
    return factors.ceil() if rounding == "up" else factors


def instance_aware_repeat_factors(dataset: Sequence[dict], repeat_thresh: float) -> Tensor:
    """Return the repeat factor of each image in instance-aware repeat-factor sampling.

    A class with a fraction f of the images and a fraction b of all instances has the factor
    max(1, √(t / √(f · b))). An image has the largest factor of its classes ("Instance-Aware Repeat
    Factor Sampling for Long-Tailed Object Detection", Yaman et al., 2023, section 3).

    Args:
        dataset: N detectron2 dataset dicts.
        repeat_thresh: t, the geometric mean of f and b below which a class is repeated.

    Returns:
        float32, shape (N,); 1 for images without instances.

    Raises:
        UserError: the threshold is not positive.
    """
    if not repeat_thresh > 0:
        raise UserError(
            "DATALOADER.REPEAT_THRESHOLD (repeat_thresh in a LazyConfig) must be positive, got "
            f"{repeat_thresh}. Set it e.g. to 0.001, as for LVIS."
        )
    counts = count_classes(dataset)
    images = counts.image_count / counts.num_images
    instances = counts.instance_count / max(counts.instances.sum(), 1)
    mean = np.sqrt(images * instances)
    with np.errstate(divide="ignore"):  # factors of classes without images are not used
        by_class = np.maximum(1, np.sqrt(repeat_thresh / mean))
    return _largest_of_classes(counts, by_class)


@TRAIN_SAMPLER_REGISTRY.register()
class InstanceAwareRepeatFactorTrainingSampler(samplers.RepeatFactorTrainingSampler):
    """Repeat-factor sampling by :func:`instance_aware_repeat_factors`."""

    @configurable
    def __init__(
        self,
        dataset: list[dict],
        *,
        repeat_thresh: float,
        repeat_rounding: str = "stochastic",
        seed: int | None = None,
    ):
        """
        Args:
            dataset, repeat_thresh: see :func:`instance_aware_repeat_factors`.
            repeat_rounding: see :func:`round_factors`.
            seed: seed of the rounding and the order. None: a random one, shared by all processes.

        Raises:
            UserError: the threshold is not positive, or the rounding is unknown.
        """
        factors = instance_aware_repeat_factors(dataset, repeat_thresh)
        super().__init__(round_factors(factors, repeat_rounding), seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {
            "dataset": dataset,
            "repeat_thresh": cfg.DATALOADER.REPEAT_THRESHOLD,
            "repeat_rounding": cfg.DATALOADER.REPEAT_ROUNDING,
            "seed": cfg.SEED if cfg.SEED >= 0 else None,
        }
