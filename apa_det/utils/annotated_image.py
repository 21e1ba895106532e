"""Drawing instances on images, legends below them, and grids of images; all with Pillow."""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.font_manager import fontManager, get_font
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..text import printable
from .label_placing import place_labels
from .plotting import INK, text_color

MIN_SIZE = 640  # pixels of the longer side, for legible labels
_FONT = 0.028  # height of the text, as a fraction of the image's mean side
_MIN_FONT = 11  # pixels
_LINE = 0.005  # width of lines, as a fraction of the image's mean side
_CROWDED = 0.2  # of the image: if labels cover more, their text is smaller
_SMALLER = 0.7
_MAX_LABEL = 0.6  # of the image's width
_MIN_LEGEND = 10  # width of a legend in heights of its text
_FILL = 0.4  # opacity of masks
_DEJAVU = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))

_NUMBER = re.compile(r"[0-9.]+")

Color = str
Legend = Sequence[tuple[Color, str]]


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[Color],
    *,
    scores: Sequence[float] | None = None,
    masks: Sequence[np.ndarray] | np.ndarray | None = None,
    size: int | None = None,
    font_size: int | None = None,
) -> np.ndarray:
    """Draw boxes, masks and labels on an image.

    Labels are inside the image and do not overlap. If there is no room for all, those of the first
    instances are drawn, and a note in the corner has the number of the others.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (n, 4), x0, y0, x1, y1 in pixels of ``image``; in descending order of importance,
            e.g. by score.
        labels: n texts, e.g. class names; no label is drawn for an empty one.
        colors: n colors, "#rrggbb".
        scores: n scores, appended to the labels with two decimals.
        masks: n masks, (H, W) bool or 0 and 1.
        size: longer side of the result in pixels. None: that of ``image``, at least 640.
        font_size: height of the text in pixels. None: in proportion to the result; smaller if
            there are many labels.

    Returns:
        (H', W', 3) uint8, RGB.

    Raises:
        ValueError: ``image`` has another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image must be (H, W, 3) uint8, got {image.shape} {image.dtype}; convert it to RGB."
        )
    longer = max(image.shape[:2])
    scale = (max(MIN_SIZE, longer) if size is None else size) / longer
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    canvas = Image.fromarray(image)
    if (width, height) != canvas.size:
        canvas = canvas.resize((width, height), Image.Resampling.BICUBIC)
    boxes = scale * np.asarray(boxes, float).reshape(-1, 4)
    boxes = np.clip(boxes, 0, (width, height, width, height))
    line = max(2, round(_LINE * (width * height) ** 0.5))
    if masks is not None:
        pixels = np.array(canvas)
        for mask, color in zip(masks, colors, strict=True):
            _draw_mask(pixels, np.asarray(mask, bool), color, scale, line)
        canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    largest_first = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable")
    for i in largest_first:
        _draw_box(draw, boxes[i], colors[i], line, canvas.size)
    texts = [printable(label, 200) for label in labels]
    if scores is not None:
        texts = [f"{t} {s:.2f}".lstrip() for t, s in zip(texts, scores, strict=True)]
    _draw_labels(draw, boxes, texts, colors, canvas.size, font_size)
    return np.array(canvas)


def add_legend(image: np.ndarray, legend: Legend, font_size: int | None = None) -> np.ndarray:
    """Return an image with a legend below it, of ``(color, text)`` pairs.

    A narrow image also gets a white margin on its right.
    """
    if not legend:
        return image
    font_size = font_size or _default_font_size(image.shape[1], image.shape[0])
    missing = max(0, _MIN_LEGEND * font_size - image.shape[1])
    image = np.pad(image, ((0, 0), (0, missing), (0, 0)), constant_values=255)
    width = image.shape[1]
    gap, swatch = font_size // 2, font_size
    fonts = [_font(text, font_size) for _, text in legend]
    lines, x = [[]], gap
    for (color, text), font in zip(legend, fonts, strict=True):
        text = _fitted(text, font, width - swatch - 3 * gap)
        advance = swatch + gap + round(font.getlength(text)) + 2 * gap
        if lines[-1] and x + advance - gap > width:
            lines.append([])
            x = gap
        lines[-1].append((x, color, text, font))
        x += advance
    row = round(1.5 * font_size)
    strip = Image.new("RGB", (width, row * len(lines) + gap), "white")
    draw = ImageDraw.Draw(strip)
    for i, entries in enumerate(lines):
        top = gap // 2 + row * i + (row - swatch) // 2
        for x, color, text, font in entries:
            draw.rectangle((x, top, x + swatch, top + swatch), color, INK)
            middle = x + swatch + gap, top + swatch / 2
            draw.text(middle, text, INK, font, anchor="lm")
    return np.concatenate([image, np.array(strip)])


def image_grid(
    panels: Sequence[np.ndarray],
    columns: int,
    *,
    titles: Sequence[str] = (),
    legend: Legend = (),
    font_size: int = 20,
) -> np.ndarray:
    """Return images in a grid on white, row by row.

    Args:
        panels: (H, W, 3) uint8 images, of any sizes; at least one.
        columns: number of columns.
        titles: a title above each panel; empty: none.
        legend: ``(color, text)`` pairs, below the grid.
        font_size: of titles and legend, in pixels.
    """
    gap = max(4, font_size // 2)
    title_height = round(1.6 * font_size) if any(titles) else 0
    cell = max(panel.shape[1] for panel in panels)
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(panel.shape[0] for panel in row) for row in rows]
    width = columns * (cell + gap) + gap
    canvas = Image.new(
        "RGB", (width, sum(heights) + len(rows) * (title_height + gap) + gap), "white"
    )
    draw = ImageDraw.Draw(canvas)
    y = gap
    for r, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for c, panel in enumerate(row):
            x = gap + c * (cell + gap)
            if title_height:
                text = printable(titles[r * columns + c], 200)
                font = _font(text, font_size)
                text, middle = _fitted(text, font, cell), (x + cell / 2, y + title_height / 2)
                draw.text(middle, text, INK, font, anchor="mm")
            left = x + (cell - panel.shape[1]) // 2
            canvas.paste(Image.fromarray(panel), (left, y + title_height))
        y += title_height + height + gap
    return add_legend(np.array(canvas), legend, font_size)


def _draw_mask(pixels: np.ndarray, mask: np.ndarray, color: Color, scale: float, line: int) -> None:
    """Blend a mask and its outline into an image of another scale, in place."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    # The part with the mask, with a border of one pixel so that the outline is closed.
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    padded = np.pad(mask[y0:y1, x0:x1], 1).astype(np.uint8) * 255
    left, top = round(scale * (x0 - 1)), round(scale * (y0 - 1))
    right, bottom = round(scale * (x1 + 1)), round(scale * (y1 + 1))
    part = Image.fromarray(padded).resize(
        (max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR
    )
    inside = np.array(part) > 127
    cut = slice(max(0, -top), pixels.shape[0] - top), slice(max(0, -left), pixels.shape[1] - left)
    inside, inner = inside[cut], _eroded(inside, line)[cut]
    target = pixels[max(0, top) :, max(0, left) :][: inside.shape[0], : inside.shape[1]]
    rgb = np.array(ImageColor.getrgb(color))
    target[inside] = ((1 - _FILL) * target[inside] + _FILL * rgb).astype(np.uint8)
    target[inside & ~inner] = rgb


def _eroded(mask: np.ndarray, distance: int) -> np.ndarray:
    """Return the pixels with neighbors at a distance in all four directions in the mask."""
    d, padded = distance, np.pad(mask, distance)
    inner = mask & padded[2 * d :, d:-d] & padded[: -2 * d, d:-d]
    return inner & padded[d:-d, 2 * d :] & padded[d:-d, : -2 * d]


def _draw_box(
    draw: ImageDraw.ImageDraw, box: np.ndarray, color: Color, line: int, size: tuple[int, int]
) -> None:
    """Draw a box with a thin outline of the opposite lightness on both sides."""
    halo = max(1, line // 3)
    last = np.array((size[0], size[1], size[0], size[1])) - 1
    x0, y0, x1, y1 = np.minimum(np.rint(box), last).astype(int).tolist()
    x1, y1 = max(x1, x0), max(y1, y0)
    outer = x0 - halo, y0 - halo, x1 + halo, y1 + halo
    draw.rectangle(outer, outline=text_color(color), width=line + 2 * halo)
    draw.rectangle((x0, y0, x1, y1), outline=color, width=line)


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    boxes: np.ndarray,
    texts: list[str],
    colors: Sequence[Color],
    size: tuple[int, int],
    font_size: int | None,
) -> None:
    width, height = size
    if font_size is None:
        font_size = _default_font_size(width, height)
        covered = sum(w * h for w, h in _label_sizes(texts, font_size, size)[1])
        crowded = (covered / (_CROWDED * width * height)) ** 0.5
        font_size = max(_MIN_FONT, round(font_size / min(max(crowded, 1), 1 / _SMALLER)))
    texts, sizes = _label_sizes(texts, font_size, size)
    positions = place_labels(sizes, boxes, width, height)
    num_labels = sum(map(bool, texts))
    note = corner = None
    if sum(p is not None for p in positions) < num_labels:
        (note,), (note_size,) = _label_sizes([f"+{num_labels} labels"], font_size, size)
        corner = width - note_size[0], height - note_size[1]
        positions = place_labels(sizes, boxes, width, height, [(*corner, width, height)])
        note = f"+{num_labels - sum(p is not None for p in positions)} labels"
    drawn = [i for i, position in enumerate(positions) if position is not None]
    for i in drawn:
        _draw_leader(draw, positions[i], sizes[i], boxes[i], colors[i])
    for i in drawn:
        _draw_label(draw, positions[i], sizes[i], texts[i], colors[i], font_size)
    if note:
        _draw_label(draw, corner, note_size, note, INK, font_size)


def _label_sizes(
    texts: Sequence[str], font_size: int, size: tuple[int, int]
) -> tuple[list[str], np.ndarray]:
    """Return the texts, shortened if too long, and the (n, 2) sizes of their labels."""
    padding = max(2, font_size // 4)
    fonts = [_font(text, font_size) for text in texts]
    longest = max(_MAX_LABEL * size[0], min(size[0], 10 * font_size)) - 2 * padding
    fitted = [_fitted(t, f, longest) for t, f in zip(texts, fonts, strict=True)]
    heights = min(size[1], round(1.3 * font_size))
    widths = (
        round(f.getlength(t) + 2 * padding) if t else 0 for t, f in zip(fitted, fonts, strict=True)
    )
    return fitted, np.array([(w, heights) for w in widths], int).reshape(-1, 2)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    size: np.ndarray,
    text: str,
    color: Color,
    font_size: int,
) -> None:
    (x, y), (w, h) = position, size
    draw.rectangle((x, y, x + w - 1, y + h - 1), color)
    middle = x + w / 2, y + h / 2
    draw.text(middle, text, text_color(color), _font(text, font_size), anchor="mm")


def _draw_leader(
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    size: np.ndarray,
    box: np.ndarray,
    color: Color,
) -> None:
    """Draw a line from a box to a label that does not touch it."""
    low, high = np.array(position), np.add(position, size)
    start = np.clip((box[:2] + box[2:]) / 2, low, high)
    end = np.clip(start, box[:2], box[2:])
    if np.abs(end - start).max() > 1:
        draw.line((*start, *end), text_color(color), 3)
        draw.line((*start, *end), color, 1)


def _default_font_size(width: int, height: int) -> int:
    return max(_MIN_FONT, round(_FONT * (width * height) ** 0.5))


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Shorten text in its middle to a width in pixels; a score at its end is kept."""
    if font.getlength(text) <= width:
        return text
    name, space, end = text.rpartition(" ")
    if not (name and _NUMBER.fullmatch(end)):
        name, space, end = text, "", ""
    for kept in range(len(name) - 1, 0, -1):
        tail = kept // 2
        short = f"{name[: kept - tail]}…{name[len(name) - tail :]}{space}{end}"
        if font.getlength(short) <= width:
            return short
    return end if font.getlength(end) <= width else ""


@lru_cache(maxsize=256)
def _font_of(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    return _font_of(_font_file(frozenset(text)), size)


@lru_cache(maxsize=4096)
def _font_file(characters: frozenset[str]) -> str:
    """Return DejaVu Sans, or if it lacks a character, the first installed font that has all."""
    if not characters <= _characters(_DEJAVU):
        for font in fontManager.ttflist:
            if "LastResort" not in font.fname and characters <= _characters(font.fname):
                return font.fname
    return _DEJAVU


@cache
def _characters(file: str) -> frozenset[str]:
    """Return the characters of a font; none if Pillow cannot use it, e.g. fonts of bitmaps."""
    try:
        _font_of(file, 12)
        return frozenset(map(chr, get_font(file).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()
