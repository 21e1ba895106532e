"""Samplers: hand-worked cases, limiting cases, detectron2's samplers, and counted epochs."""

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
from apa_det.errors import UserError


def records(*class_lists):
    return [{"annotations": [{"category_id": c} for c in classes]} for classes in class_lists]


# class 0: 3 images, 6 instances; class 1: 1 image, 2 instances; class 2: 2 images, 2 instances;
# one image without instances
SMALL = records([0, 0, 0, 0], [0, 1, 1], [0, 2], [2], [])
LONG_TAIL = records(*[[0]] * 110, *[[0, 1]] * 20, *[[2, 0, 0]] * 3, [], [1, 1])

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


def test_all_samplers_are_tested():
    assert set(MAKE) == {name for name, _ in TRAIN_SAMPLER_REGISTRY}


@pytest.mark.parametrize("name", MAKE)
def test_order_depends_only_on_seed_not_on_processes(name, monkeypatch):
    whole = first(MAKE[name](LONG_TAIL, seed=5), 600)
    assert first(MAKE[name](LONG_TAIL, seed=5), 600) == whole
    assert first(MAKE[name](LONG_TAIL, seed=6), 600) != whole
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(first(MAKE[name](LONG_TAIL, seed=5), 200))
    assert [i for indices in zip(*parts, strict=True) for i in indices] == whole


@pytest.mark.parametrize("name", MAKE)
def test_repeats_match_counted_epochs(name):
    """Over many epochs, each image is drawn as often as ``repeats`` says."""
    sampler = MAKE[name](LONG_TAIL, seed=0)
    repeats = repeats_of(sampler).double()
    epochs = 200
    counts = Counter(first(sampler, round(epochs * repeats.sum().item())))
    seen = torch.tensor([counts[i] / epochs for i in range(len(LONG_TAIL))])
    # the standard error of the stochastic rounding is below 0.5 / √epochs
    torch.testing.assert_close(seen.double(), repeats, rtol=0, atol=5 * 0.5 / math.sqrt(epochs))
    assert ((seen == 0) == (repeats == 0)).all()


def test_same_streams_as_detectron2():
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


def test_rounding_up():
    """Every epoch holds each image ceil(r) times."""
    torch.manual_seed(0)
    dataset = LONG_TAIL
    share = [
        sum(any(a["category_id"] == c for a in d["annotations"]) for d in dataset) for c in range(3)
    ]
    factor = [max(1.0, math.sqrt(0.3 / (n / len(dataset)))) for n in share]
    expected = [
        math.ceil(max((factor[a["category_id"]] for a in d["annotations"]), default=1.0))
        for d in dataset
    ]
    sampler = RepeatFactorTrainingSampler(dataset, repeat_thresh=0.3, repeat_rounding="up", seed=1)
    for epoch in (
        first(sampler, 2 * sum(expected))[k:][: sum(expected)] for k in (0, sum(expected))
    ):
        assert Counter(epoch) == Counter({i: n for i, n in enumerate(expected)})
    plain = RepeatFactorTrainingSampler(dataset, repeat_thresh=0.3, seed=1)
    assert len(dataset) < plain._int_part.sum() + plain._frac_part.sum() < sum(expected)
    aware = InstanceAwareRepeatFactorTrainingSampler(
        dataset, repeat_thresh=0.3, repeat_rounding="up", seed=1
    )
    assert torch.equal(repeats_of(aware), instance_aware_repeat_factors(dataset, 0.3).ceil())
    with pytest.raises(UserError, match="must be stochastic or up; got 'down'"):
        RepeatFactorTrainingSampler(dataset, repeat_thresh=0.3, repeat_rounding="down")


def test_instance_aware_by_hand():
    # fractions of the images 3/5, 1/5, 2/5 and of the instances 6/10, 2/10, 2/10
    factor = [1, math.sqrt(0.5 / 0.2), math.sqrt(0.5 / math.sqrt(0.4 * 0.2))]
    expected = torch.tensor([1, factor[1], factor[2], factor[2], 1])
    torch.testing.assert_close(instance_aware_repeat_factors(SMALL, 0.5), expected)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.floats(0.01, 1))
def test_instance_aware_with_one_instance_per_image_is_repeat_factor(classes, threshold):
    dataset = records(*([c] for c in classes))
    torch.testing.assert_close(
        instance_aware_repeat_factors(dataset, threshold),
        RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dataset, threshold),
    )


def test_instance_aware_without_threshold():
    with pytest.raises(UserError, match="REPEAT_THRESHOLD .*must be positive, got 0.0"):
        instance_aware_repeat_factors(SMALL, 0.0)


def test_class_aware_by_hand():
    # 3 classes, 5 images: 2 rounds of 3 draws. Class 0 is drawn from 3 images, class 2 from 2
    sampler = ClassAwareTrainingSampler(SMALL, seed=1)
    expected = torch.tensor([2 / 3, 2 / 3 + 2, 2 / 3 + 1, 1, 0])
    torch.testing.assert_close(sampler.repeats, expected)
    draws = first(sampler, 18)
    assert 4 not in draws  # without instances
    for i in range(0, 18, 3):  # each round draws class 1 from its only image
        assert 1 in draws[i : i + 3]
    of_2 = Counter(i for i in draws if i == 3)
    assert of_2[3] == 3  # half of the six draws of class 2


def test_class_aware_draws_classes_equally_often():
    """With one class per image: all classes, and all images of a class, are drawn equally often."""
    dataset = records(*[[0]] * 40, *[[1]] * 4, [2])
    counts = Counter(first(ClassAwareTrainingSampler(dataset, seed=0), 240))
    assert [counts[i] for i in range(40)] == [2] * 40
    assert [counts[i] for i in range(40, 44)] == [20] * 4
    assert counts[44] == 80


def test_class_aware_without_instances():
    with pytest.raises(UserError, match="needs instances, but the training set has none"):
        ClassAwareTrainingSampler(records([], []))


def test_undersampling_by_hand():
    sampler = UndersamplingTrainingSampler(LONG_TAIL, frequent_share=0.3, seed=0)
    expected = np.float32([0.3] * 110 + [1] * 25)  # the last 25 are kept
    np.testing.assert_array_equal(repeats_of(sampler), expected)


def test_undersampling_fraction_1_is_plain():
    whole = UndersamplingTrainingSampler(LONG_TAIL, frequent_share=1.0, seed=0)
    epoch = first(whole, len(LONG_TAIL))
    assert sorted(epoch) == list(range(len(LONG_TAIL)))


def test_undersampling_errors():
    with pytest.raises(UserError, match="FREQUENT_SHARE .*got 0"):
        UndersamplingTrainingSampler(LONG_TAIL, frequent_share=0)
    with pytest.raises(UserError, match="the 5 training images include none"):
        UndersamplingTrainingSampler(SMALL, frequent_share=0.5)
