"""detectron2's samplers that draw each image, or a random subset, once per epoch."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import samplers
from torch import Tensor

from .registry import TRAIN_SAMPLER_REGISTRY


@TRAIN_SAMPLER_REGISTRY.register()
class TrainingSampler(samplers.TrainingSampler):
    """detectron2's ``TrainingSampler``: an epoch is all images in random order."""

    @configurable
    def __init__(self, dataset: list[dict], *, seed: int | None = None):
        """
        Args:
            dataset: detectron2 dataset dicts.
            seed: seed of the order. None: a random one, shared by all processes.
        """
        super().__init__(len(dataset), seed=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {"dataset": dataset, "seed": cfg.SEED if cfg.SEED >= 0 else None}

    @property
    def repeats(self) -> Tensor:
        """float32, shape (N,): 1 for each image."""
        return torch.ones(self._size)


@TRAIN_SAMPLER_REGISTRY.register()
class RandomSubsetTrainingSampler(samplers.RandomSubsetTrainingSampler):
    """detectron2's ``RandomSubsetTrainingSampler``: a fixed random subset of the images."""

    @configurable
    def __init__(self, dataset: list[dict], *, subset_ratio: float, seed: int | None = None):
        """
        Args:
            dataset: detectron2 dataset dicts.
            subset_ratio: fraction of the images, in (0, 1].
            seed: seed of the subset and the order. None: a random one, shared by all processes.
        """
        super().__init__(len(dataset), subset_ratio, seed_shuffle=seed, seed_subset=seed)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {
            "dataset": dataset,
            "subset_ratio": cfg.DATALOADER.RANDOM_SUBSET_RATIO,
            "seed": cfg.SEED if cfg.SEED >= 0 else None,
        }

    @property
    def repeats(self) -> Tensor:
        """float32, shape (N,): 1 for the images of the subset, else 0."""
        return torch.zeros(self._size).index_fill(0, self._indexes_subset, 1)
