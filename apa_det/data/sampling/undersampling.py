"""Undersampling: images with only frequent classes are drawn less often."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import samplers

from ...errors import UserError
from .counts import ClassCounts, class_groups, count_classes
from .registry import TRAIN_SAMPLER_REGISTRY


@TRAIN_SAMPLER_REGISTRY.register()
class UndersamplingTrainingSampler(samplers.RepeatFactorTrainingSampler):
    """Keep a fraction of the images with only frequent classes, and all other images.

    Random undersampling of the majority classes ("A systematic study of the class imbalance problem
    in convolutional neural networks", Buda et al., Neural Networks 2018, section 2.2.1). Each epoch
    draws new images. A fraction of 1 is ``TrainingSampler``.
    """

    @configurable
    def __init__(
        self,
        dataset: list[dict],
        *,
        frequent_share: float,
        dataset_names: Sequence[str] = (),
        seed: int | None = None,
    ):
        """
        Args:
            dataset: detectron2 dataset dicts. Images without instances are kept.
            frequent_share: fraction that an epoch keeps, in (0, 1].
            dataset_names: see :func:`class_groups`.
            seed: seed of the choice and the order. None: a random one, shared by all processes.

        Raises:
            UserError: the fraction is out of range, or every image has a class that is not
                frequent, or no instances.
        """
        counts = count_classes(dataset)
        factors = undersampling_factors(counts, class_groups(counts, dataset_names), frequent_share)
        super().__init__(torch.from_numpy(factors).float(), seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {
            "dataset": dataset,
            "frequent_share": cfg.DATALOADER.FREQUENT_SHARE,
            "dataset_names": cfg.DATASETS.TRAIN,
            "seed": cfg.SEED if cfg.SEED >= 0 else None,
        }


def undersampling_factors(
    counts: ClassCounts, groups: Sequence[str], frequent_share: float
) -> np.ndarray:
    """Return the fraction of each image that an epoch keeps, float64, shape (N,).

    Args:
        counts: counts of the dataset.
        groups: frequency group of each class, from :func:`class_groups`.
        frequent_share: fraction of the images with only frequent classes, in (0, 1].

    Raises:
        UserError: see :class:`UndersamplingTrainingSampler`.
    """
    if not 0 < frequent_share <= 1:
        raise UserError(
            "DATALOADER.FREQUENT_SHARE (frequent_share in a LazyConfig) must be in (0, 1], got "
            f"{frequent_share}."
        )
    frequent = np.array(groups) == "f"
    reduced = np.isin(np.arange(counts.num_images), counts.images)
    reduced[counts.images[~frequent[counts.classes]]] = False
    if not reduced.any():
        raise UserError(
            "UndersamplingTrainingSampler drops images with only frequent classes, but the "
            f"{counts.num_images} training images include none. Choose another "
            "DATALOADER.SAMPLER_TRAIN."
        )
    return np.where(reduced, frequent_share, 1.0)
