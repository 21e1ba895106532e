"""Pasting: hand-worked cases, and a composition pixel by pixel."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, polygons_to_bitmask

from apa_det.data.copy_paste.compose import Piece, paste, soft_edge


def rectangle(x0, y0, x1, y1):
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1], float)


def instances(boxes, size, kind):
    """Rectangles of classes 0, 1, ... as polygons, bitmaps or boxes only."""
    result = Instances(size)
    result.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.gt_classes = torch.arange(len(boxes))
    polygons = [[rectangle(*box)] for box in boxes]
    if kind == "polygon":
        result.gt_masks = PolygonMasks(polygons)
    elif kind == "bitmask" and boxes:
        masks = [polygons_to_bitmask(polygon, *size) for polygon in polygons]
        result.gt_masks = BitMasks(torch.from_numpy(np.stack(masks)))
    return result


def piece(x, y, height, width, category=7, value=200, mask=None, alpha=None):
    mask = np.ones((height, width), bool) if mask is None else mask
    return Piece(np.full((height, width, 3), value, np.uint8), mask, alpha, category, x, y)


def black(height=10, width=12):
    return torch.zeros(3, height, width, dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["polygon", "bitmask", "boxes"])
def test_by_hand(kind):
    """A 4 × 4 piece over a half of class 0, a corner of class 1, nothing of class 2."""
    before = instances([[0, 0, 4, 4], [4, 3, 10, 9], [10, 0, 12, 2]], (10, 12), kind)
    result = paste(black(), before, [piece(2, 0, 4, 4)], with_masks=kind != "boxes")
    assert result.instances.gt_classes.tolist() == [0, 1, 2, 7]
    assert result.instances.gt_boxes.tensor.tolist() == [
        [0, 0, 2, 4],
        [4, 3, 10, 9],  # without its corner
        [10, 0, 12, 2],
        [2, 0, 6, 4],
    ]
    assert (result.classes, result.partial) == ({7}, set())
    expected = torch.zeros(10, 12, dtype=torch.uint8)
    expected[0:4, 2:6] = 200
    assert (result.image == expected).all()
    assert before.gt_boxes.tensor[0].tolist() == [0, 0, 4, 4]
    if kind == "boxes":
        assert not result.instances.has("gt_masks")
        return
    assert result.instances.gt_masks.tensor.sum((1, 2)).tolist() == [8, 34, 4, 16]
    assert not result.instances.gt_masks.tensor[1, 3, 4:6].any()


@pytest.mark.parametrize("min_visible, dropped", [(0.0, False), (0.25, False), (0.26, True)])
def test_covered_too_far(min_visible, dropped):
    """A quarter of class 0 stays visible; class 1 is covered whole."""
    before = instances([[0, 0, 4, 4], [5, 0, 7, 4]], (10, 12), "polygon")
    pieces = [piece(1, 0, 4, 9)]
    result = paste(black(), before, pieces, min_visible=min_visible, with_masks=True)
    assert result.instances.gt_classes.tolist() == ([7] if dropped else [0, 7])
    assert result.partial == ({0} if dropped else set())


def test_later_pieces_cover_earlier_ones():
    pieces = [piece(0, 0, 4, 4, 7), piece(0, 0, 4, 4, 8), piece(2, 0, 4, 4, 9)]
    result = paste(black(), instances([], (10, 12), "polygon"), pieces, with_masks=True)
    assert result.instances.gt_classes.tolist() == [8, 9]
    assert result.instances.gt_boxes.tensor.tolist() == [[0, 0, 2, 4], [2, 0, 6, 4]]
    assert result.classes == {8, 9}


def test_pieces_beyond_the_image():
    """Cut at the border, and left out if too little of them is inside."""
    empty = instances([], (10, 12), "polygon")
    large = paste(black(), empty, [piece(-3, -4, 30, 40)], with_masks=True)
    assert large.instances.gt_boxes.tensor.tolist() == [[0, 0, 12, 10]]
    for x, y in ((-4, 0), (12, 0), (0, 10), (0, -4), (-50, -50)):
        outside = paste(black(), empty, [piece(x, y, 4, 4)], with_masks=True)
        assert outside.instances is empty and not outside.image.any()
    corner = [piece(-2, 8, 4, 4)]  # a quarter is inside
    assert len(paste(black(), empty, corner, min_visible=0.25, with_masks=True).instances) == 1
    assert len(paste(black(), empty, corner, min_visible=0.3, with_masks=True).instances) == 0


def test_blending():
    """Half opaque pixels; none outside of the mask; float images are not rounded."""
    mask = np.array([[True, False]])
    part = piece(0, 0, 1, 2, value=201, mask=mask, alpha=np.full((1, 2), 0.5, np.float32))
    empty = instances([], (10, 12), "polygon")
    image = paste(black(), empty, [part], with_masks=True).image
    assert image[0, 0, :2].tolist() == [100, 0]  # to even
    image = paste(black().double(), empty, [part], with_masks=True).image
    assert image[0, 0, :2].tolist() == [100.5, 0]


def test_soft_edge():
    """The opacity across a straight edge is the normal distribution; 1 deep inside."""
    mask = np.zeros((41, 41), bool)
    mask[:, 20:] = True
    alpha = soft_edge(mask, 2.0)[20]
    expected = torch.distributions.Normal(0, 2).cdf(torch.arange(41) - 19.5).numpy()
    assert np.abs(alpha[:34] - expected[:34]).max() < 0.005
    assert soft_edge(np.ones((41, 41), bool), 2.0)[20, 20] == pytest.approx(1)


@pytest.mark.parametrize("kind", ["polygon", "bitmask", "boxes"])
def test_pixel_by_pixel(kind):
    """Random scenes against a map of the topmost instance of each pixel."""
    generator = np.random.default_rng(3)
    for _ in range(25):
        size = height, width = generator.integers(5, 30, 2).tolist()
        corners = generator.integers(0, [width - 1, height - 1], (generator.integers(4), 2))
        ends = generator.integers(corners + 1, [width + 1, height + 1])
        before = instances(np.hstack([corners, ends]).tolist(), size, kind)
        pieces = []
        for k in range(generator.integers(1, 4)):
            shape = generator.integers(1, 20, 2)
            mask = generator.random(shape) < 0.6
            x, y = generator.integers(-10, 30, 2).tolist()
            pieces.append(piece(x, y, *shape, 10 + k, 50 + k, mask))
        image = torch.full((3, *size), 9, dtype=torch.uint8)
        result = paste(image, before, pieces, min_visible=0.3, with_masks=kind != "boxes")

        scene = []  # (class, full area, visible mask)
        for label, box in enumerate(before.gt_boxes.tensor.int().tolist()):
            mask = np.zeros(size, bool)
            mask[box[1] : box[3], box[0] : box[2]] = True
            scene.append((label, mask.sum(), mask))
        expected = np.full(size, 9)
        for part in pieces:
            pixels = [(r + part.y, c + part.x) for r, c in zip(*part.mask.nonzero(), strict=True)]
            inside = [(r, c) for r, c in pixels if 0 <= r < height and 0 <= c < width]
            if not inside or len(inside) < 0.3 * len(pixels):
                continue
            mask = np.zeros(size, bool)
            for r, c in inside:
                mask[r, c] = True
                expected[r, c] = part.pixels[0, 0, 0]
                for _, _, other in scene:
                    other[r, c] = False
            scene.append((part.category, len(inside), mask))
        scene = [(k, m) for k, area, m in scene if m.any() and m.sum() >= 0.3 * area]
        assert (result.image.numpy() == expected).all()
        assert result.instances.gt_classes.tolist() == [k for k, _ in scene]
        tight = [
            (x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in (m.nonzero() for _, m in scene)
        ]
        assert result.instances.gt_boxes.tensor.tolist() == [list(box) for box in tight]
        assert result.classes == {k for k, _ in scene if k >= 10}
        if kind != "boxes" and len(scene):
            masks = result.instances.gt_masks
            masks = masks.tensor if isinstance(masks, BitMasks) else None
            assert masks is None or (masks.numpy() == [m for _, m in scene]).all()
