"""Fractal dimensions against hand-worked grids and slow loops over cells in exact fractions."""

import json
import math
import os
import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_det.data import ensure_metadata, register_lvis_format
from apa_det.data.class_counts import class_counts
from apa_det.data.fractal_dimension import (
    fractal_dimensions,
    read_class_boxes,
    shares_and_dimensions,
)
from apa_det.data.lvis_format import set_class_order
from apa_det.errors import MissingFileError, UserError


def one_class(points, size=(60, 60)):
    points = np.array(points, float)
    return fractal_dimensions(
        points, np.tile(size, (len(points), 1)), np.zeros(len(points), int), 1
    ).item()


def slope(numbers):
    """Fit log N(d) over log d, d = 1, 2, ...: the normal equations, one term at a time."""
    x, y = [math.log(d) for d in range(1, len(numbers) + 1)], [math.log(n) for n in numbers]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def test_by_hand():
    corners = [(10, 10), (50, 10), (10, 50), (50, 50)]
    assert one_class(corners[:3]) == 1  # too few boxes
    assert one_class(corners) == pytest.approx(2)  # 1 cell of 1, 4 cells of 4
    assert one_class([(10, 10)] * 20) == 1  # one cell of each grid: a slope of 0
    # 9 boxes on the diagonal and in the last column: 1, 3 and 5 cells of 1, 4 and 9.
    nine = [(10, 10), (30, 30), (50, 50), (50, 10), (50, 30)] + [(10, 10)] * 4
    assert one_class(nine) == pytest.approx(1.47789, abs=1e-5) == slope([1, 3, 5])


def test_cells_are_half_open():
    """A center between two cells belongs to the right and lower one."""
    middle = [(30, 30)] * 3
    assert one_class([*middle, (40, 40)]) == 1  # all in the same of 2 x 2 cells
    assert one_class([*middle, (29, 29)]) == pytest.approx(1)  # 2 cells
    assert one_class([(0, 0), (0, 30), (30, 0), (30, 30)]) == pytest.approx(2)
    # Centers on the right and the lower edge are in no cell, and still count as boxes.
    assert one_class([(0, 0), (60, 10), (10, 60), (60, 60)]) == 1
    assert one_class([(60, 60)] * 4) == 1


def test_grids_end_at_64():
    """Every cell of the 64 x 64 grid is occupied; finer grids would lower the slope."""
    steps = (np.arange(64) + 0.5) * 10
    lattice = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    assert one_class(np.concatenate([lattice] * 2), (640, 640)) == pytest.approx(2)


boxes = st.tuples(st.integers(0, 3), st.integers(-8, 248), st.integers(-8, 248), st.integers(0, 2))
SIZES = [(60, 45), (49, 47), (22, 58)]


@settings(max_examples=40, deadline=None)
@given(st.lists(boxes, max_size=60))
def test_literal_restatement(items):
    """Quarter pixels, so that centers fall on the edges of cells too."""
    centers = np.array([(x / 4, y / 4) for _, x, y, _ in items]).reshape(-1, 2)
    sizes = np.array([SIZES[i] for *_, i in items], int).reshape(-1, 2)
    classes = np.array([c for c, *_ in items], int)
    expected = []
    for k in range(5):
        points = [
            (Fraction(x, 4) / SIZES[i][0], Fraction(y, 4) / SIZES[i][1])
            for c, x, y, i in items
            if c == k
        ]
        numbers = []
        for d in range(1, 65):
            if d * d > len(points):
                break
            number = 0
            for i in range(d):
                for j in range(d):
                    low, high = (Fraction(i, d), Fraction(j, d)), (Fraction(1, d),) * 2
                    number += any(
                        low[0] <= x < low[0] + high[0] and low[1] <= y < low[1] + high[1]
                        for x, y in points
                    )
            numbers.append(max(number, 1))
        expected.append(max(slope(numbers), 1) if len(points) >= 4 else 1)
    dimensions = fractal_dimensions(centers, sizes, classes, 5)
    np.testing.assert_allclose(dimensions, expected, atol=1e-9)


@pytest.fixture
def register(tmp_path):
    """Register a dataset in COCO format by images (id, boxes by category id)."""
    names = []

    def make(images, categories=((7, "cat"), (3, "dog"), (5, "owl")), name="boxes"):
        annotations = [
            {"id": 0, "image_id": image_id, "category_id": c, "bbox": box, "iscrowd": 0}
            for image_id, items in images.items()
            for c, box in items
        ]
        dataset = {
            "images": [
                {"id": i, "width": 60, "height": 30, "file_name": f"{i}.jpg"} for i in images
            ],
            "annotations": [{**a, "id": i} for i, a in enumerate(annotations)],
            "categories": [{"id": i, "name": name} for i, name in categories],
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(dataset))
        if name not in names:
            ids = sorted(i for i, _ in categories)
            MetadataCatalog.get(name).set(
                json_file=str(path),
                thing_dataset_id_to_contiguous_id={i: k for k, i in enumerate(ids)},
            )
            names.append(name)
        return name

    yield make
    for name in names:
        MetadataCatalog.remove(name)


QUARTERS = [[10, 5, 10, 4], [40, 5, 10, 4], [10, 20, 10, 4], [40, 20, 10, 4]]


def test_shares_and_dimensions(register):
    """Dogs, in 2 of 4 images, fill the image; the cat occurs once, owls never."""
    dogs = [(3, box) for box in QUARTERS]
    name = register({9: dogs[:3], 4: dogs[3:], 2: [], 1: [(7, [0, 0, 60, 30])]})
    expected = [[2 / 4, 2.0], [1 / 4, 1.0], [1 / 4, 1.0]]  # dog, owl, cat
    np.testing.assert_allclose(shares_and_dimensions([name]), expected, rtol=1e-6)


def test_order_of_classes(tmp_path):
    """Classes go by name: the values follow the order of the model's classes, not of the ids."""
    box = [0, 0, 9, 9]
    dataset = {
        "images": [
            {"id": i, "width": 60, "height": 30, "file_name": "1.jpg"}
            | {"neg_category_ids": [], "not_exhaustive_category_ids": []}
            for i in (1, 2)
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 81},
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": box, "area": 81},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": box, "area": 81},
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in (1, 2)],
    }
    (tmp_path / "two.json").write_text(json.dumps(dataset))
    register_lvis_format("fractal_two", tmp_path / "two.json", tmp_path)
    try:
        for order in ([1, 2], [2, 1], [1, 2]):
            set_class_order("fractal_two", [f"class {i}" for i in order])
            ensure_metadata("fractal_two")
            shares = shares_and_dimensions(["fractal_two"])[:, 0].tolist()
            assert shares == [{1: 1.0, 2: 0.5}[i] for i in order]
            counts = class_counts(["fractal_two"]).tolist()
            assert counts == [{1: 2, 2: 1}[i] for i in order]
    finally:
        DatasetCatalog.remove("fractal_two")
        MetadataCatalog.remove("fractal_two")


def test_several_datasets(register):
    """Image ids may repeat; boxes and images add up."""
    names = [
        register({1: [(3, box) for box in QUARTERS[:2]]}, name="first"),
        register({1: [(3, box) for box in QUARTERS[2:]], 2: []}, name="second"),
    ]
    np.testing.assert_allclose(shares_and_dimensions(names)[0], [2 / 3, 2.0], rtol=1e-6)
    other = register({1: []}, categories=((1, "cat"),), name="third")
    with pytest.raises(UserError, match="first, third have different classes"):
        shares_and_dimensions([names[0], other])


def test_a_changed_file_is_read_again(register):
    name = register({1: [(3, QUARTERS[0])]})
    path = MetadataCatalog.get(name).json_file
    assert shares_and_dimensions([name])[0, 0] == 1
    assert read_class_boxes(path) is read_class_boxes(path)
    register({1: [(3, QUARTERS[0])], 2: []})
    os.utime(path, ns=(1, 1))
    assert shares_and_dimensions([name])[0, 0] == 0.5


def test_errors(register, tmp_path):
    MetadataCatalog.get("boxes_nowhere").set(thing_classes=["cat"])
    with pytest.raises(UserError, match="annotation file of the dataset boxes_nowhere, which"):
        shares_and_dimensions(["boxes_nowhere"])
    MetadataCatalog.get("boxes_nowhere").set(json_file=str(tmp_path / "absent.json"))
    with pytest.raises(MissingFileError, match="of the dataset boxes_nowhere: .*absent.json does"):
        shares_and_dimensions(["boxes_nowhere"])
    MetadataCatalog.remove("boxes_nowhere")
    with pytest.raises(UserError, match="need a training dataset"):
        shares_and_dimensions([])
    with pytest.raises(UserError, match="has no images"):
        shares_and_dimensions([register({})])
    with pytest.raises(MissingFileError, match=r"absent.json does not exist"):
        read_class_boxes(tmp_path / "absent.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [], "annotations": [{"id": 1}], "categories": [1]}')
    with pytest.raises(UserError, match="category number 1 in the file must be a JSON object"):
        read_class_boxes(broken)


def test_the_size_of_lvis(lvis_v1_categories):
    """1.27 million boxes of 1,203 classes: less than 10 s and 2 GB."""
    counts = [category["instance_count"] for category in lvis_v1_categories]
    classes = np.repeat(np.arange(1203), counts)
    rng = np.random.default_rng(0)
    rng.shuffle(classes)
    sizes = rng.choice([640, 480, 427], (len(classes), 2))
    centers = rng.uniform(size=sizes.shape) * sizes
    tracemalloc.start()
    start = time.process_time()
    dimensions = fractal_dimensions(centers, sizes, classes, 1203)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10 and peak < 5e8
    assert dimensions.min() >= 1 and dimensions[np.argmax(counts)] == pytest.approx(2, abs=0.01)
