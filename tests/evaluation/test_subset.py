import numpy as np
import pytest

from apa_det.evaluation import GroundTruth, choose_subset


@pytest.fixture(scope="module")
def truth():
    """1000 images: 20 rare categories in 2 each, 20 common in 20 each, 5 frequent in 150 each."""
    rng = np.random.default_rng(0)
    counts = [2] * 20 + [20] * 20 + [150] * 5
    pairs = [
        (image, category)
        for category, count in enumerate(counts)
        for image in rng.choice(1000, count, replace=False).tolist()
    ]
    return GroundTruth(
        {
            "images": [
                {
                    "id": 3 * i + 5,
                    "height": 10,
                    "width": 10,
                    "neg_category_ids": [],
                    "not_exhaustive_category_ids": [],
                }
                for i in range(1000)
            ],
            "categories": [
                {"id": k, "image_count": n, "frequency": "rcf"[(n > 2) + (n > 20)]}
                for k, n in enumerate(counts)
            ],
            "annotations": [
                {"id": i, "image_id": 3 * m + 5, "category_id": c, "bbox": [1, 1, 2, 2], "area": 4}
                for i, (m, c) in enumerate(pairs)
            ],
        }
    )


def images_per_category(truth, image_ids):
    part = truth.restricted_to(image_ids)
    pairs = set(
        zip(part.annotation_images.tolist(), part.annotation_categories.tolist(), strict=True)
    )
    return np.bincount([c for _, c in pairs], minlength=45)


def test_groups_get_equal_shares(truth):
    chosen = choose_subset(truth, 90)
    assert len(chosen) == len(np.unique(chosen)) == 90
    assert np.isin(chosen, truth.image_ids).all() and (np.diff(chosen) > 0).all()
    counts = images_per_category(truth, chosen)
    assert (counts[:20] >= 1).all()  # every rare category
    assert (counts[20:40] >= 1).all() and (counts[40:] >= 3).all()
    random = np.random.default_rng(0).choice(truth.image_ids, 90, replace=False)
    assert (images_per_category(truth, random)[:20] == 0).sum() > 10


def test_is_deterministic(truth):
    assert np.array_equal(choose_subset(truth, 50), choose_subset(truth, 50))
    assert not np.array_equal(choose_subset(truth, 50), choose_subset(truth, 50, seed=1))
    few = choose_subset(truth, 7)
    assert len(few) == 7 and images_per_category(truth, few)[:20].sum() >= 3


def test_most_or_all_images(truth):
    annotated = truth.image_ids[np.unique(truth.annotation_images)]
    assert len(annotated) < 900
    chosen = choose_subset(truth, 990)
    assert len(chosen) == 990 and np.isin(annotated, chosen).all()
    assert np.array_equal(choose_subset(truth, 1000), truth.image_ids)
    assert np.array_equal(choose_subset(truth, 5000), truth.image_ids)
