"""The samplers against hand-worked cases, limiting cases, detectron2's own and counted epochs."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import samplers
from detectron2.utils import comm
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_det.data.sampling import (
    TRAIN_SAMPLER_REGISTRY,
    ClassAwareTrainingSampler,
    InstanceAwareRepeatFactorTrainingSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    UndersamplingTrainingSampler,
    instance_aware_repeat_factors,
)


def pictures(*class_lists):
    return [{"annotations": [{"category_id": c} for c in classes]} for classes in class_lists]


# 0 in three pictures with six instances, 1 in one with two, 2 in two with two; one without
SMALL = pictures([0, 0, 0, 0], [0, 1, 1], [0, 2], [2], [])
LONG_TAIL = pictures(*[[0]] * 110, *[[0, 1]] * 20, *[[2, 0, 0]] * 3, [], [1, 1])

MAKE = {
    "TrainingSampler": lambda d, **k: TrainingSampler(d, **k),
    "RandomSubsetTrainingSampler": lambda d, **k: RandomSubsetTrainingSampler(
        d, subset_ratio=0.5, **k
    ),
    "RepeatFactorTrainingSampler": lambda d, **k: RepeatFactorTrainingSampler(
        d, repeat_thresh=0.3, **k
    ),
    "InstanceAwareRepeatFactorTrainingSampler": lambda d, **k: (
        InstanceAwareRepeatFactorTrainingSampler(d, repeat_thresh=0.3, **k)
    ),
    "ClassAwareTrainingSampler": lambda d, **k: ClassAwareTrainingSampler(d, **k),
    "UndersamplingTrainingSampler": lambda d, **k: UndersamplingTrainingSampler(
        d, frequent_share=0.3, **k
    ),
}


def repeats_of(sampler):
    if isinstance(sampler, samplers.RepeatFactorTrainingSampler):
        return sampler._int_part + sampler._frac_part
    return sampler.repeats


def first(sampler, n):
    return list(itertools.islice(sampler, n))


def test_all_are_tested():
    assert set(MAKE) == {name for name, _ in TRAIN_SAMPLER_REGISTRY}


@pytest.mark.parametrize("name", MAKE)
def test_same_seed_same_order_however_many_processes(name, monkeypatch):
    whole = first(MAKE[name](LONG_TAIL, seed=5), 600)
    assert first(MAKE[name](LONG_TAIL, seed=5), 600) == whole
    assert first(MAKE[name](LONG_TAIL, seed=6), 600) != whole
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(first(MAKE[name](LONG_TAIL, seed=5), 200))
    assert [i for places in zip(*parts, strict=True) for i in places] == whole


@pytest.mark.parametrize("name", MAKE)
def test_repeats_are_those_of_counted_epochs(name):
    """Over many epochs, each picture comes as often as the sampler says."""
    sampler = MAKE[name](LONG_TAIL, seed=0)
    repeats = repeats_of(sampler).double()
    epochs = 200
    counts = Counter(first(sampler, round(epochs * repeats.sum().item())))
    seen = torch.tensor([counts[i] / epochs for i in range(len(LONG_TAIL))])
    # the standard error of a rounding is below 0.5 / √epochs
    torch.testing.assert_close(seen.double(), repeats, rtol=0, atol=5 * 0.5 / math.sqrt(epochs))
    assert ((seen == 0) == (repeats == 0)).all()


def test_the_streams_of_detectron2():
    factors = samplers.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    for ours, theirs in (
        (TrainingSampler(SMALL, seed=3), samplers.TrainingSampler(5, seed=3)),
        (
            RandomSubsetTrainingSampler(SMALL, subset_ratio=0.5, seed=3),
            samplers.RandomSubsetTrainingSampler(5, 0.5, seed_shuffle=3, seed_subset=3),
        ),
        (
            RepeatFactorTrainingSampler(SMALL, repeat_thresh=0.9, repeat_sqrt=False, seed=3),
            samplers.RepeatFactorTrainingSampler(factors(SMALL, 0.9, sqrt=False), seed=3),
        ),
    ):
        assert first(ours, 40) == first(theirs, 40)


def test_instance_aware_by_hand():
    # shares of the pictures 3/5, 1/5, 2/5 and of the instances 6/10, 2/10, 2/10
    factor = [1, math.sqrt(0.5 / 0.2), math.sqrt(0.5 / math.sqrt(0.4 * 0.2))]
    expected = torch.tensor([1, factor[1], factor[2], factor[2], 1])
    torch.testing.assert_close(instance_aware_repeat_factors(SMALL, 0.5), expected)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.floats(0.01, 1))
def test_instance_aware_of_one_instance_a_picture_is_repeat_factor(classes, threshold):
    dataset = pictures(*([c] for c in classes))
    torch.testing.assert_close(
        instance_aware_repeat_factors(dataset, threshold),
        RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dataset, threshold),
    )


def test_instance_aware_without_threshold():
    with pytest.raises(ValueError, match="REPEAT_THRESHOLD is 0.0 .*above 0"):
        instance_aware_repeat_factors(SMALL, 0.0)


def test_class_aware_by_hand():
    # 3 classes, 5 pictures: 2 rounds of 3 draws. 0 is drawn from three pictures, 2 from two
    sampler = ClassAwareTrainingSampler(SMALL, seed=1)
    expected = torch.tensor([2 / 3, 2 / 3 + 2, 2 / 3 + 1, 1, 0])
    torch.testing.assert_close(sampler.repeats, expected)
    draws = first(sampler, 18)
    assert 4 not in draws  # without instances
    for i in range(0, 18, 3):  # each round draws 1 from the only picture that has it
        assert 1 in draws[i : i + 3]
    of_2 = Counter(i for i in draws if i == 3)
    assert of_2[3] == 3  # half of the six draws of class 2


def test_class_aware_draws_each_class_as_often():
    """Of pictures with one class each, as many of any class, and all pictures of a class alike."""
    dataset = pictures(*[[0]] * 40, *[[1]] * 4, [2])
    counts = Counter(first(ClassAwareTrainingSampler(dataset, seed=0), 240))
    assert [counts[i] for i in range(40)] == [2] * 40
    assert [counts[i] for i in range(40, 44)] == [20] * 4
    assert counts[44] == 80


def test_class_aware_of_no_class():
    with pytest.raises(ValueError, match="no instance of any"):
        ClassAwareTrainingSampler(pictures([], []))


def test_undersampling_by_hand():
    sampler = UndersamplingTrainingSampler(LONG_TAIL, frequent_share=0.3, seed=0)
    expected = np.float32([0.3] * 110 + [1] * 25)  # the last ones have another class, or none
    np.testing.assert_array_equal(repeats_of(sampler), expected)


def test_undersampling_to_all_is_plain():
    whole = UndersamplingTrainingSampler(LONG_TAIL, frequent_share=1.0, seed=0)
    epoch = first(whole, len(LONG_TAIL))
    assert sorted(epoch) == list(range(len(LONG_TAIL)))


def test_undersampling_refuses():
    with pytest.raises(ValueError, match="FREQUENT_SHARE .*not 0"):
        UndersamplingTrainingSampler(LONG_TAIL, frequent_share=0)
    with pytest.raises(ValueError, match="none of the 5 training pictures"):
        UndersamplingTrainingSampler(SMALL, frequent_share=0.5)
