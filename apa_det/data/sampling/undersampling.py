"""Undersampling: pictures of frequent classes alone come less often."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import samplers

from .counts import class_groups, count_classes
from .registry import TRAIN_SAMPLER_REGISTRY

__all__ = ["UndersamplingTrainingSampler"]


@TRAIN_SAMPLER_REGISTRY.register()
class UndersamplingTrainingSampler(samplers.RepeatFactorTrainingSampler):
    """Keeps a share of the pictures whose classes are all frequent, and every other picture.

    Random undersampling of the majority classes ("A systematic study of the class imbalance problem
    in convolutional neural networks", Buda et al., Neural Networks 2018, section 2.2.1), with
    another choice of pictures in each epoch. At a share of 1 it is ``TrainingSampler``.
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
            dataset: detectron2's dataset dicts. Pictures without instances are kept.
            frequent_share: the share that an epoch keeps, above 0 and up to 1.
            dataset_names: see :func:`class_groups`.
            seed: of the choice and the order. None: one that all processes agree on.

        Raises:
            ValueError: the share is out of bounds, or no picture has frequent classes alone.
        """
        if not 0 < frequent_share <= 1:
            raise ValueError(
                "DATALOADER.FREQUENT_SHARE (in a LazyConfig, frequent_share) is above 0 and up to "
                f"1, not {frequent_share}."
            )
        counts = count_classes(dataset)
        frequent = np.array(class_groups(counts, dataset_names)) == "f"
        reduced = np.isin(np.arange(counts.num_pictures), counts.pictures)
        reduced[counts.pictures[~frequent[counts.classes]]] = False
        if not reduced.any():
            raise ValueError(
                "UndersamplingTrainingSampler leaves out pictures whose classes are all frequent, "
                f"and none of the {len(dataset)} training pictures is such: choose another "
                "DATALOADER.SAMPLER_TRAIN."
            )
        factors = np.where(reduced, frequent_share, 1.0)
        super().__init__(torch.from_numpy(factors).float(), seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {
            "dataset": dataset,
            "frequent_share": cfg.DATALOADER.FREQUENT_SHARE,
            "dataset_names": cfg.DATASETS.TRAIN,
            "seed": cfg.SEED if cfg.SEED >= 0 else None,
        }
