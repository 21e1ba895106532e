"""Class-aware sampling: all classes are drawn equally often."""

from collections.abc import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import samplers
from torch import Tensor

from ...errors import UserError
from .counts import count_classes
from .registry import TRAIN_SAMPLER_REGISTRY


@TRAIN_SAMPLER_REGISTRY.register()
class ClassAwareTrainingSampler(samplers.TrainingSampler):
    """Draw a class, then an image with that class, both from shuffled lists.

    An exhausted list is reshuffled ("Relay Backpropagation for Effective Learning of Deep
    Convolutional Neural Networks", Shen et al., ECCV 2016, section 3.3). So all classes are drawn
    equally often, although an image brings all of its classes.

    An epoch is the smallest number of rounds through all classes that draws at least as many images
    as the dataset has.

    Attributes:
        repeats: float32, shape (N,), the expected number of times an epoch sees each image.
    """

    @configurable
    def __init__(self, dataset: list[dict], *, seed: int | None = None):
        """
        Args:
            dataset: detectron2 dataset dicts. Images without instances are never drawn.
            seed: seed of the shuffling. None: a random one, shared by all processes.

        Raises:
            UserError: the dataset has no instances.
        """
        super().__init__(len(dataset), seed=seed)
        counts = count_classes(dataset)
        if not len(counts.classes):
            raise UserError(
                "ClassAwareTrainingSampler needs instances, but the training set has none. Set "
                "DATALOADER.SAMPLER_TRAIN to TrainingSampler."
            )
        by_class = np.argsort(counts.classes, kind="stable")
        present, starts = np.unique(counts.classes[by_class], return_index=True)
        images = torch.from_numpy(counts.images[by_class])
        self._images = list(images.tensor_split(starts[1:].tolist()))
        rounds = -(-self._size // len(present))
        weights = rounds / counts.image_count[counts.classes]
        repeats = np.bincount(counts.images, weights, minlength=self._size)
        self.repeats: Tensor = torch.from_numpy(repeats).float()

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: list[dict]) -> dict:
        return {"dataset": dataset, "seed": cfg.SEED if cfg.SEED >= 0 else None}

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        lists = [_endlessly_shuffled(images, generator) for images in self._images]
        for draw in _endlessly_shuffled(torch.arange(len(lists)), generator):
            yield next(lists[draw])


def _endlessly_shuffled(values: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from values[torch.randperm(len(values), generator=generator)].tolist()
