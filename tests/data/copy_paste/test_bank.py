"""The bank: which instances it has, and the probabilities of its classes."""

import numpy as np
import pytest
from detectron2.structures import BoxMode

from apa_det.data.copy_paste.bank import InstanceBank
from apa_det.errors import UserError

IDS = [90, 4, 21]  # of the contiguous classes


def annotation(category, box=(1, 1, 8, 8), **keys):
    return {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, **keys}


def record(*annotations, **keys):
    return {"height": 20, "width": 30, "annotations": list(annotations), **keys}


# Class 0 in four images, class 1 in one, class 2 in two
DATASET = [
    record(annotation(0), annotation(0, (2, 2, 4, 4)), annotation(1, (0, 0, 10, 10))),
    record(annotation(0), annotation(2, iscrowd=1), annotation(2)),
    record(annotation(0), annotation(2), not_exhaustive_category_ids=[21]),
    record(annotation(0), annotation(1, iscrowd=1)),
    record(),
]


def bank(sampling="uniform", dataset=DATASET, **keys):
    return InstanceBank(dataset, sampling=sampling, file_ids=IDS, **keys)


def test_instances():
    """Neither crowds, nor classes that are not exhaustively annotated in their image."""
    result = bank()
    assert result.classes.tolist() == [0, 1, 2]
    assert result.starts.tolist() == [0, 5, 6, 7]
    assert [*zip(result.images.tolist(), result.annotations.tolist(), strict=True)] == [
        *((0, 0), (0, 1), (1, 0), (2, 0), (3, 0)),
        (0, 2),
        (1, 2),
    ]


def test_what_cannot_be_pasted():
    boxes = [(40, 0, 50, 10), (5, 5, 5, 9), (5, 5, 5.5, 9), (-9, -9, 0.5, 5)]
    dataset = [record(*(annotation(0, box) for box in boxes), annotation(1, segmentation=[]))]
    with pytest.raises(UserError, match="needs instances to paste, but the training set has none"):
        bank(dataset=dataset)


@pytest.mark.parametrize(
    "sampling, weights",
    [
        ("uniform", [1, 1, 1]),
        ("rare_first", [1 / 4, 1, 1 / 2]),
        # max(1, sqrt(0.45 / f)) with f = 0.8, 0.2 and 0.4
        ("repeat_factor", [1, 1.5, 1.0606602]),
    ],
)
def test_probabilities(sampling, weights):
    result = bank(sampling, repeat_thresh=0.45)
    expected = np.array(weights) / np.sum(weights)
    assert result.probabilities == pytest.approx(expected)
    np.random.seed(0)
    draws = [result.draw() for _ in range(4000)]
    shares = np.bincount([draw.category for draw in draws]) / len(draws)
    assert np.abs(shares - expected).max() < 0.03
    for draw in draws:
        assert DATASET[draw.image]["annotations"][draw.annotation]["category_id"] == draw.category
    instances = {(draw.image, draw.annotation) for draw in draws}
    assert len(instances) == 7


def test_repeat_factor_needs_a_threshold():
    with pytest.raises(UserError, match="repeat_factor needs DATALOADER.REPEAT_THRESHOLD"):
        bank("repeat_factor")


def test_most_drawn():
    """Classes have 200, 100 and 49 pixels, and the probabilities 1/7, 4/7 and 2/7."""
    result = bank("rare_first")
    for pixels, chosen, share in (
        (48, [], 0),
        (49, [2], 2 / 7),
        (149, [1, 2], 6 / 7),
        (349, [0, 1, 2], 1),
    ):
        classes, probability = result.most_drawn(pixels)
        assert result.classes[classes].tolist() == chosen
        assert probability == pytest.approx(share)


@pytest.mark.parametrize(
    "keys, text",
    [
        ({"proposal_boxes": []}, "does not work with precomputed proposals"),
        ({"sem_seg_file_name": "x"}, "does not work with semantic labels"),
        ({"annotations": [annotation(0, bbox_mode=BoxMode.XYWHA_ABS)]}, "with rotated boxes"),
    ],
)
def test_refused(keys, text):
    with pytest.raises(UserError, match=f"INPUT.COPY_PASTE .*{text}"):
        bank(dataset=[record(annotation(0)) | keys])
