"""Class-aware sampling: every class comes as often as any other."""

from collections.abc import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import samplers
from torch import Tensor

from .counts import count_classes
from .registry import TRAIN_SAMPLER_REGISTRY

__all__ = ["ClassAwareTrainingSampler"]


@TRAIN_SAMPLER_REGISTRY.register()
class ClassAwareTrainingSampler(samplers.TrainingSampler):
    """Draws a class, and then a picture with that class, both from shuffled lists.

    A list starts anew, in another order, when all of it was drawn ("Relay Backpropagation for
    Effective Learning of Deep Convolutional Neural Networks", Shen et al., ECCV 2016, section 3.3).
    So each class is drawn as often as any other, while a picture comes with all of its classes.

    An epoch is the fewest rounds through all classes that draw as many pictures as the dataset has.
    """

    @configurable
    def __init__(self, dataset: list[dict], *, seed: int | None = None):
        """
        Args:
            dataset: detectron2's dataset dicts. Pictures without instances are never drawn.
            seed: of all orders. None: one that all processes agree on.

        Raises:
            ValueError: the dataset has no instance.
        """
        super().__init__(len(dataset), seed=seed)
        counts = count_classes(dataset)
        if not len(counts.classes):
            raise ValueError(
                "ClassAwareTrainingSampler draws classes, and the training set has no instance of "
                "any: set DATALOADER.SAMPLER_TRAIN to TrainingSampler."
            )
        by_class = np.argsort(counts.classes, kind="stable")
        present, starts = np.unique(counts.classes[by_class], return_index=True)
        pictures = torch.from_numpy(counts.pictures[by_class])
        self._pictures = list(pictures.tensor_split(starts[1:].tolist()))
        rounds = -(-self._size // len(present))
        weights = rounds / counts.image_count[counts.classes]
        repeats = np.bincount(counts.pictures, weights, minlength=self._size)
        self.repeats: Tensor = torch.from_numpy(repeats).float()

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {"dataset": dataset, "seed": cfg.SEED if cfg.SEED >= 0 else None}

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        lists = [_endlessly_shuffled(pictures, generator) for pictures in self._pictures]
        for draw in _endlessly_shuffled(torch.arange(len(lists)), generator):
            yield next(lists[draw])


def _endlessly_shuffled(values: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from values[torch.randperm(len(values), generator=generator)].tolist()
