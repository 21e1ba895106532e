"""Confusions: a hand-worked dataset, and a loop over all pairs of random boxes."""

import numpy as np
import pycocotools.mask as mask_util

from apa_det.evaluation import Detections, GroundTruth
from apa_det.evaluation import overlaps as module
from apa_det.evaluation.confusions import find_confusions
from apa_det.evaluation.overlaps import box_pairs

FIRST, SECOND, THIRD = [10, 10, 40, 40], [100, 100, 40, 40], [10, 100, 40, 40]


def dataset(objects, images=1, **lists):
    """Return an LVIS-format dataset; category 1 is rare, the others are frequent."""
    return {
        "images": [
            {
                "id": i,
                "width": 200,
                "height": 200,
                "neg_category_ids": lists.get("negative", []),
                "not_exhaustive_category_ids": lists.get("partial", []),
            }
            for i in range(1, images + 1)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
            }
            for i, (image, category, box) in enumerate(objects, 1)
        ],
        "categories": [
            {"id": i, "name": f"c{i}", "image_count": n} for i, n in ((1, 5), (2, 500), (3, 500))
        ],
    }


def found(content, results, **options):
    """Return category, taken_for, count, certain and objects of each confusion; ids."""
    keys = ("image_id", "category_id", "score", "bbox")
    records = [dict(zip(keys, values, strict=True)) for values in results]
    truth = GroundTruth.from_dataset(content)
    rows = find_confusions(truth, Detections.from_records(records), **options)
    return [(c.category + 1, c.taken_for + 1, c.count, c.certain, c.objects) for c in rows], rows


def test_the_highest_score_counts():
    content = dataset([(1, 1, FIRST), (1, 2, SECOND), (1, 1, THIRD)], negative=[3])
    results = [
        (1, 1, 0.3, FIRST),
        (1, 2, 0.8, FIRST),
        (1, 3, 0.7, FIRST),
        (1, 2, 0.9, SECOND),
        (1, 1, 0.6, [35, 100, 40, 40]),  # IoU 15/65: not on the third
        (1, 3, 0.5, [10, 90, 40, 40]),  # IoU 30/50 with the third
    ]
    pairs, rows = found(content, results)
    assert pairs == [(1, 2, 1, 1, 2), (1, 3, 1, 1, 2)]
    assert rows[0].score == rows[0].mean_score == 0.8
    assert rows[0].annotation == 0 and rows[0].box == tuple(FIRST)
    assert found(content, [*results, (1, 1, 0.8, FIRST)])[0] == [(1, 3, 1, 1, 2)]  # a tie
    assert found(content, results, max_dets=1)[0] == []  # the detection of the second object
    assert found(content, [])[0] == []


def test_a_detection_of_another_object_is_no_confusion():
    """Two objects at one place: a shirt and the person that wears it."""
    content = dataset([(1, 1, FIRST), (1, 2, [10, 10, 40, 50])])
    person, again = (1, 2, 0.9, [10, 10, 40, 50]), (1, 2, 0.8, [10, 10, 40, 45])
    assert found(content, [person, again, (1, 1, 0.2, FIRST)])[0] == []
    assert found(content, [person, (1, 3, 0.5, FIRST)])[0] == [(1, 3, 1, 0, 1)]


def test_certain_where_the_other_category_is_verified():
    objects = [(i, 1, FIRST) for i in (1, 2, 3)]
    results = [(1, 2, 0.9, FIRST), (2, 2, 0.7, FIRST), (3, 3, 0.5, FIRST)]
    pairs, rows = found(dataset(objects, 3, negative=[2]), results)
    assert pairs == [(1, 2, 2, 2, 3), (1, 3, 1, 0, 3)]
    assert np.isclose(rows[0].mean_score, 0.8)
    partial = dataset(objects, 3, negative=[2], partial=[2])
    assert found(partial, results)[0] == [(1, 2, 2, 0, 3), (1, 3, 1, 0, 3)]


def test_pairs_equal_those_of_pycocotools(monkeypatch):
    """Blocks of a few pairs, images in any order, and annotations that are left out."""
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 7)
    rng = np.random.default_rng(0)

    def random_boxes(n):
        return np.concatenate([rng.uniform(0, 60, (n, 2)), rng.uniform(0, 60, (n, 2))], 1)

    boxes, images = random_boxes(80).astype(np.float32), rng.integers(0, 9, 80)
    objects = random_boxes(40).tolist()
    truth = GroundTruth(
        dataset([(int(rng.integers(1, 9)), 1, box) for box in objects], images=10),
        everything_verified=True,
    )
    chosen = np.arange(0, 40, 2) + 1
    for minimum in (0.1, 0.5):
        rows, annotations, ious = (
            np.concatenate(part)
            for part in zip(*box_pairs(truth, chosen, boxes, images, minimum), strict=True)
        )
        expected = np.zeros((80, 40))
        expected[:, chosen] = mask_util.iou(
            boxes.astype(float), truth.boxes[chosen], [False] * len(chosen)
        )
        expected *= images[:, None] == truth.annotation_images
        assert (np.diff(rows) >= 0).all()
        assert set(zip(rows, annotations, strict=True)) == set(
            zip(*np.nonzero(expected >= minimum), strict=True)
        )
        assert (ious == expected[rows, annotations]).all()
