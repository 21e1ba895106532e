"""Repeat-factor sampling from plain arguments."""

from collections.abc import Iterable

from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler

__all__ = ["build_repeat_factor_train_loader"]


def build_repeat_factor_train_loader(
    dataset: list[dict], *, repeat_thresh: float, seed: int | None = None, **kwargs
) -> Iterable[list[dict]]:
    """detectron2's training loader, which sees pictures of rare categories more often.

    It is ``DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler`` for LazyConfig. There, a sampler
    of its own would need the dataset twice, and so read it twice.

    Args:
        dataset: detectron2's dataset dicts.
        repeat_thresh: a category in less than this share of the pictures is repeated ("LVIS", Gupta
            et al., CVPR 2019, appendix B.2).
        seed: of the sampler. None: one that all processes agree on.
        kwargs: as for :func:`detectron2.data.build_detection_train_loader`, without ``sampler``.
    """
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dataset, repeat_thresh
    )
    sampler = RepeatFactorTrainingSampler(factors, seed=seed)
    return build_detection_train_loader(dataset, sampler=sampler, **kwargs)
