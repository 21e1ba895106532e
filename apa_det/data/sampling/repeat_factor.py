"""Repeat-factor sampling: pictures of scarce classes come more often."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import samplers
from torch import Tensor

from .counts import count_classes
from .registry import TRAIN_SAMPLER_REGISTRY

__all__ = [
    "InstanceAwareRepeatFactorTrainingSampler",
    "RepeatFactorTrainingSampler",
    "instance_aware_repeat_factors",
]


@TRAIN_SAMPLER_REGISTRY.register()
class RepeatFactorTrainingSampler(samplers.RepeatFactorTrainingSampler):
    """detectron2's sampler of a dataset: repeat-factor sampling.

    A class in the share f of the pictures has the repeat factor max(1, √(t / f)), and a picture the
    largest of its classes: as often an epoch sees it, by stochastic rounding ("LVIS", Gupta et al.,
    CVPR 2019, appendix B.2).
    """

    @configurable
    def __init__(
        self,
        dataset: list[dict],
        *,
        repeat_thresh: float,
        repeat_sqrt: bool = True,
        seed: int | None = None,
    ):
        """
        Args:
            dataset: detectron2's dataset dicts.
            repeat_thresh: t, the share of the pictures below which a class is repeated.
            repeat_sqrt: whether to take the root.
            seed: of the rounding and the order. None: one that all processes agree on.
        """
        factors = self.repeat_factors_from_category_frequency(dataset, repeat_thresh, repeat_sqrt)
        super().__init__(factors, seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {
            "dataset": dataset,
            "repeat_thresh": cfg.DATALOADER.REPEAT_THRESHOLD,
            "repeat_sqrt": cfg.DATALOADER.REPEAT_SQRT,
            "seed": cfg.SEED,
        }


def instance_aware_repeat_factors(dataset: Sequence[dict], repeat_thresh: float) -> Tensor:
    """The repeat factors of instance-aware repeat-factor sampling.

    A class in the share f of the pictures, and with the share b of all instances, has the factor
    max(1, √(t / √(f · b))), and a picture the largest of its classes ("Instance-Aware Repeat Factor
    Sampling for Long-Tailed Object Detection", Yaman et al., 2023, section 3).

    Args:
        dataset: N of detectron2's dataset dicts.
        repeat_thresh: t, the mean of f and b below which a class is repeated.

    Returns:
        (N,) float32; 1 for a picture without instances.

    Raises:
        ValueError: the threshold is not above 0, so that nothing would be repeated.
    """
    if not repeat_thresh > 0:
        raise ValueError(
            f"DATALOADER.REPEAT_THRESHOLD is {repeat_thresh} (in a LazyConfig, repeat_thresh), and "
            "nothing would be repeated: set it above 0, such as 0.001 for LVIS."
        )
    counts = count_classes(dataset)
    images = counts.image_count / counts.num_pictures
    instances = counts.instance_count / max(counts.instances.sum(), 1)
    share = np.sqrt(images * instances)
    with np.errstate(divide="ignore"):  # a class without pictures gives no picture its factor
        by_class = np.maximum(1, np.sqrt(repeat_thresh / share))
    factors = np.ones(counts.num_pictures)
    np.maximum.at(factors, counts.pictures, by_class[counts.classes])
    return torch.from_numpy(factors).float()


@TRAIN_SAMPLER_REGISTRY.register()
class InstanceAwareRepeatFactorTrainingSampler(samplers.RepeatFactorTrainingSampler):
    """Repeat-factor sampling by :func:`instance_aware_repeat_factors`."""

    @configurable
    def __init__(self, dataset: list[dict], *, repeat_thresh: float, seed: int | None = None):
        """
        Args:
            dataset: detectron2's dataset dicts.
            repeat_thresh: t, the mean of the shares of pictures and instances below which a class
                is repeated.
            seed: of the rounding and the order. None: one that all processes agree on.

        Raises:
            ValueError: the threshold is not above 0.
        """
        super().__init__(instance_aware_repeat_factors(dataset, repeat_thresh), seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {
            "dataset": dataset,
            "repeat_thresh": cfg.DATALOADER.REPEAT_THRESHOLD,
            "seed": cfg.SEED if cfg.SEED >= 0 else None,
        }
