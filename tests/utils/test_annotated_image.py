"""Images with boxes, masks and labels; their legends, and the positions of labels."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import ImageDraw

from apa_det.utils import annotated_image
from apa_det.utils.annotated_image import add_legend, draw_instances, image_grid
from apa_det.utils.label_placing import place_labels


def random_boxes(rng, n, width, height, largest=0.5):
    low = rng.random((n, 2)) * (width, height)
    high = low + largest * rng.random((n, 2)) * (width, height)
    return np.concatenate([low, np.minimum(high, (width, height))], 1)


@pytest.mark.parametrize("seed", range(8))
def test_labels_are_inside_and_apart(seed):
    rng = np.random.default_rng(seed)
    width, height = rng.integers(300, 1500, 2).tolist()
    n = int(rng.integers(1, 120))
    sizes = np.stack([rng.integers(10, 200, n), np.full(n, 18)], 1)
    corner = (width - 90, height - 20, width, height)
    boxes = random_boxes(rng, n, width, height)
    positions = place_labels(sizes, boxes, width, height, [corner])
    taken = np.zeros((height, width), bool)
    taken[corner[1] :, corner[0] :] = True
    for position, (w, h) in zip(positions, sizes, strict=True):
        if position is not None:
            x, y = position
            assert 0 <= x <= width - w and 0 <= y <= height - h
            assert not taken[y : y + h, x : x + w].any()
            taken[y : y + h, x : x + w] = True
    room = sizes.prod(1).cumsum() < 0.1 * width * height
    assert all(positions[i] is not None for i in np.flatnonzero(room))


def test_labels_touch_their_boxes_where_there_is_room():
    boxes = [(10, 100, 60, 200), (150, 0, 200, 30), (350, 250, 400, 300), (0, 0, 400, 300)]
    positions = place_labels(np.full((4, 2), (80, 20)), boxes, 400, 300)
    assert positions[0] == (10, 80)  # above
    assert positions[1] == (150, 30)  # below: there is no room above
    assert positions[2] == (320, 230)  # above, but within the image
    assert positions[3] == (0, 0)  # inside


def test_many_labels_of_one_box_are_all_placed():
    positions = place_labels(np.full((12, 2), (90, 16)), [(300, 200, 320, 220)] * 12, 640, 480)
    assert len(set(positions)) == 12 and None not in positions
    assert np.ptp(positions, axis=0).max() < 200  # near the box


def record_texts(monkeypatch):
    """Return a list to which the color below each text and that of the text are appended."""
    colors = []
    draw_text = ImageDraw.ImageDraw.text

    def text(self, position, string, fill, font, anchor):
        below = self._image.getpixel((int(position[0]), int(position[1])))
        colors.append((string, below, fill))
        draw_text(self, position, string, fill, font, anchor=anchor)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return colors


def contrast(first, second):
    """WCAG 2."""
    luminances = []
    for color in (first, second):
        c = np.array(to_rgb(color))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        luminances.append(linear @ (0.2126, 0.7152, 0.0722))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_text_is_readable_on_any_color(background, monkeypatch):
    texts = record_texts(monkeypatch)
    image = np.full((480, 640, 3), background, np.uint8)
    grays = [f"#{value:02x}0{9 - i}80" for i, value in enumerate(range(0, 250, 25))]
    boxes = [(60 * i, 40 * i, 60 * i + 50, 40 * i + 30) for i in range(10)]
    draw_instances(image, boxes, ["class"] * 10, grays, scores=[0.5] * 10)
    assert len(texts) == 10
    for string, below, color in texts:
        assert string == "class 0.50"
        assert contrast(tuple(c / 255 for c in below), color) >= 4.5


@pytest.mark.parametrize("background, color", [(0, "#000033"), (255, "#ffffee")])
def test_boxes_stand_out(background, color):
    """A dark box on black has a light outline, and the other way around."""
    image = np.full((640, 640, 3), background, np.uint8)
    drawn = draw_instances(image, [(100, 100, 300, 300)], [""], [color]).astype(int)
    profile = np.abs(drawn[200, 80:120].sum(-1) - 3 * background)
    assert profile.max() > 600


@pytest.mark.parametrize("shape", [(40, 40), (1, 1), (1, 50), (900, 30), (600, 900)])
@pytest.mark.parametrize("masks", [True, False])
def test_sizes(shape, masks):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    boxes = np.concatenate([random_boxes(rng, 4, shape[1], shape[0]) - 3, [(0, 0, 0, 0)]])
    masks = rng.random((5, *shape)) > 0.9 if masks else None
    names = ["long name of a class" * i for i in range(5)]
    colors = ["#c44900"] * 5
    drawn = draw_instances(image, boxes, names, colors, scores=rng.random(5), masks=masks)
    assert max(drawn.shape) == max(640, *shape) and drawn.dtype == np.uint8
    expected = max(1, round(shape[1] * max(640, *shape) / max(shape)))
    assert drawn.shape[1] == expected
    assert draw_instances(image, [], [], [], size=200).shape[:2] != shape


def test_masks_keep_their_location():
    image = np.zeros((100, 200, 3), np.uint8)
    mask = np.zeros((100, 200), bool)
    mask[40:80, 150:] = True  # to the border
    drawn = draw_instances(image, [(0, 0, 1, 1)], [""], ["#ffffff"], masks=[mask], size=800)
    assert (drawn[200:280, 640:760] == round(0.4 * 255)).all()  # blended
    assert not drawn[150:155, 20:].any() and not drawn[:, 20:590].any()
    assert (drawn[200:280, 601] == 255).all()  # outline


def test_crowded_image_says_how_many_labels_are_missing(monkeypatch):
    texts = record_texts(monkeypatch)
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 300, 640, 480)
    names = [f"class {i}" for i in range(300)]
    draw_instances(np.zeros((480, 640, 3), np.uint8), boxes, names, ["#0068b0"] * 300)
    drawn = [string for string, _, _ in texts]
    assert drawn[0] == "class 0" and drawn[-1] == f"+{301 - len(drawn)} labels"
    assert 50 < len(drawn) < 300


def test_long_names_keep_their_scores(monkeypatch):
    texts = record_texts(monkeypatch)
    image = np.zeros((300, 400, 3), np.uint8)
    name = "a name with very many words\nin two lines" * 9
    draw_instances(image, [(9, 9, 90, 90)], [name], ["#0068b0"], scores=[0.5])
    (text, _, _), *rest = texts
    assert text.startswith("a name") and "…" in text and text.endswith(" 0.50")
    assert not rest and "\n" not in text


def test_characters_of_other_fonts():
    """What DejaVu Sans lacks is drawn with another font, if one is installed."""
    files = [annotated_image._font(text, 12).path for text in ("Größe", "zebra", "∰ 𝔄 \U0001d4d0")]
    assert files[0] == files[1] == annotated_image._DEJAVU
    characters = annotated_image._characters(files[2])
    assert files[2] == annotated_image._DEJAVU or "\U0001d4d0" in characters
    assert annotated_image._characters(__file__) == frozenset()  # not a font
    image = np.zeros((99, 99, 3), np.uint8)
    assert draw_instances(image, [(9, 9, 90, 90)], ["\U0010fffd 猫"], ["#0068b0"]).any()


def test_legend_keeps_the_image_and_names_every_color():
    image = np.full((300, 300, 3), 7, np.uint8)
    entries = [("#c44900", "rare classes"), ("#00805c", "common classes")]
    drawn = add_legend(image, entries)
    assert (drawn[:300] == image).all() and drawn.shape[1] == 300
    strip = {tuple(pixel) for pixel in drawn[300:].reshape(-1, 3)}
    assert {(0xC4, 0x49, 0), (0, 0x80, 0x5C), (255, 255, 255)} <= strip
    longer = add_legend(image, entries * 5)  # in several lines
    assert longer.shape[0] > drawn.shape[0] and longer.shape[1] == 300
    assert add_legend(np.zeros((50, 8, 3), np.uint8), entries).shape[1] > 100
    assert add_legend(image, []) is image


def test_grid():
    panels = [np.full((h, w, 3), 9, np.uint8) for h, w in ((40, 160), (20, 180), (50, 130))]
    drawn = image_grid(panels, 2, titles=["a", "b", "c"], legend=[("#c44900", "rare")])
    assert (drawn == 9).all(-1).sum() >= 40 * 160 + 20 * 180 + 50 * 130
    assert drawn.shape[1] == 2 * 180 + 30


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3))])
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="image must be .* convert it to RGB"):
        draw_instances(image, [], [], [])
