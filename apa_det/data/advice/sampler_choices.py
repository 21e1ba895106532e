"""What an epoch of each training sampler would contain."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import UserError
from ..sampling.class_aware import ClassAwareTrainingSampler
from ..sampling.repeat_factor import (
    InstanceAwareRepeatFactorTrainingSampler,
    RepeatFactorTrainingSampler,
)
from ..sampling.undersampling import undersampling_factors
from .dataset_statistics import DatasetStatistics

FREQUENT_SHARE = 0.5  # the default of DATALOADER.FREQUENT_SHARE


@dataclass(frozen=True, eq=False)
class SamplerChoice:
    """The expected contents of an epoch.

    Attributes:
        name: ``DATALOADER.SAMPLER_TRAIN``.
        setting: its further key and value, as text.
        image_counts: (K,) number of images with each class; None if it cannot be used.
        instance_counts: (K,) number of instances of each class.
        num_images: number of images.
        fault: why it cannot be used.
    """

    name: str
    setting: str = ""
    image_counts: np.ndarray | None = None
    instance_counts: np.ndarray | None = None
    num_images: float = 0.0
    fault: str = ""


def sampler_choices(statistics: DatasetStatistics, repeat_thresh: float) -> list[SamplerChoice]:
    """Return the contents of an epoch of each sampler, over the images with annotations.

    The repeat factors are those of the samplers themselves.

    Args:
        statistics: of the training set.
        repeat_thresh: ``DATALOADER.REPEAT_THRESHOLD`` of those that use it; positive.
    """
    counts = statistics.counts
    dataset = _light_records(statistics)
    threshold = f"REPEAT_THRESHOLD {repeat_thresh:g}"

    def repeated(sampler: type) -> np.ndarray:
        built = sampler(dataset, repeat_thresh=repeat_thresh, seed=0)
        return (built._int_part + built._frac_part).double().numpy()

    makers: list[tuple[str, str, Callable[[], np.ndarray]]] = [
        ("TrainingSampler", "", lambda: np.ones(counts.num_images)),
        (
            "RepeatFactorTrainingSampler",
            threshold,
            lambda: repeated(RepeatFactorTrainingSampler),
        ),
        (
            "InstanceAwareRepeatFactorTrainingSampler",
            threshold,
            lambda: repeated(InstanceAwareRepeatFactorTrainingSampler),
        ),
        (
            "ClassAwareTrainingSampler",
            "",
            lambda: ClassAwareTrainingSampler(dataset, seed=0).repeats.double().numpy(),
        ),
        (
            "UndersamplingTrainingSampler",
            f"FREQUENT_SHARE {FREQUENT_SHARE:g}",
            lambda: undersampling_factors(counts, statistics.groups, FREQUENT_SHARE),
        ),
    ]
    choices = []
    for name, setting, repeats_of in makers:
        try:
            repeats = repeats_of()
        except UserError as error:
            choices.append(SamplerChoice(name, setting, fault=str(error)))
            continue
        weights = repeats[counts.images]
        choices.append(
            SamplerChoice(
                name,
                setting,
                np.bincount(counts.classes, weights, minlength=counts.num_classes),
                np.bincount(
                    counts.classes, weights * counts.instances, minlength=counts.num_classes
                ),
                float(repeats.sum()),
            )
        )
    return choices


def _light_records(statistics: DatasetStatistics) -> list[dict]:
    """Return dataset dicts with nothing but the classes of the instances."""
    instances = [{"category_id": i} for i in range(len(statistics.names))]
    records: list[dict] = [{"annotations": []} for _ in range(statistics.counts.num_images)]
    for row, i in zip(statistics.rows.tolist(), statistics.classes.tolist(), strict=True):
        records[row]["annotations"].append(instances[i])
    return records
