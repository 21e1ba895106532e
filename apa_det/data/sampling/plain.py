"""Every picture once in an epoch, or a random share of the pictures: detectron2's samplers."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import samplers
from torch import Tensor

from .registry import TRAIN_SAMPLER_REGISTRY

__all__ = ["RandomSubsetTrainingSampler", "TrainingSampler"]


@TRAIN_SAMPLER_REGISTRY.register()
class TrainingSampler(samplers.TrainingSampler):
    """detectron2's sampler of a dataset: an epoch is all its pictures, in random order."""

    @configurable
    def __init__(self, dataset: list[dict], *, seed: int | None = None):
        """
        Args:
            dataset: detectron2's dataset dicts.
            seed: of the order. None: one that all processes agree on.
        """
        super().__init__(len(dataset), seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {"dataset": dataset}  # detectron2 does not hand on cfg.SEED

    @property
    def repeats(self) -> Tensor:
        """(N,) float32: 1 for each picture."""
        return torch.ones(self._size)


@TRAIN_SAMPLER_REGISTRY.register()
class RandomSubsetTrainingSampler(samplers.RandomSubsetTrainingSampler):
    """detectron2's sampler of a random share of the pictures, the same in each epoch."""

    @configurable
    def __init__(self, dataset: list[dict], *, subset_ratio: float, seed: int | None = None):
        """
        Args:
            dataset: detectron2's dataset dicts.
            subset_ratio: the share, above 0 and up to 1.
            seed: of the choice and the order. None: one that all processes agree on.
        """
        super().__init__(len(dataset), subset_ratio, seed_shuffle=seed, seed_subset=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {"dataset": dataset, "subset_ratio": cfg.DATALOADER.RANDOM_SUBSET_RATIO}

    @property
    def repeats(self) -> Tensor:
        """(N,) float32: 1 for the pictures of the share, 0 for the others."""
        return torch.zeros(self._size).index_fill(0, self._indexes_subset, 1)
