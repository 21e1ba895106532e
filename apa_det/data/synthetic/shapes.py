"""Appearance of the classes of the synthetic dataset: a shape, a color and a mark inside."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_Region = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _polygon(*corners: tuple[float, float]) -> _Region:
    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        result = np.zeros(u.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if y0 != y1:
                crosses = (v < y0) != (v < y1)
                result ^= crosses & (u < x0 + (v - y0) * ((x1 - x0) / (y1 - y0)))
        return result

    return inside


def _spokes(num: int, inner: float) -> _Region:
    """Return a star with ``num`` points, or a regular polygon if ``inner`` is 1."""
    angles = np.arange(2 * num) * np.pi / num - np.pi / 2
    radii = np.where(np.arange(2 * num) % 2, inner, 1.0)
    if inner == 1:
        angles, radii = angles[::2], radii[::2]
    points = zip(radii * np.cos(angles), radii * np.sin(angles), strict=True)
    return _polygon(*((float(x), float(y)) for x, y in points))


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    lobes = np.hypot(np.abs(u) - 0.48, v + 0.38) < 0.52
    return lobes | ((v > -0.38) & (np.abs(u) * 1.02 + (v - 0.98) * 0.73 < 0))


# Regions of the (u, v) plane, u to the right and v down, that roughly fill [-1, 1] x [-1, 1].
SHAPES: dict[str, _Region] = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.86,
    "triangle": _polygon((0, -1), (1, 0.85), (-1, 0.85)),
    "star": _spokes(5, 0.45),
    "cross": lambda u, v: (
        (np.minimum(np.abs(u), np.abs(v)) < 0.33) & (np.maximum(np.abs(u), np.abs(v)) < 1)
    ),
    "diamond": lambda u, v: np.abs(u) * 1.35 + np.abs(v) < 1,
    "heart": _heart,
    "crescent": lambda u, v: (u**2 + v**2 < 1) & ((u - 0.55) ** 2 + v**2 > 0.64),
    "arrow": _polygon(
        (1, 0), (0.1, -0.95), (0.1, -0.4), (-1, -0.4), (-1, 0.4), (0.1, 0.4), (0.1, 0.95)
    ),
    "bar": lambda u, v: (np.abs(u) < 1) & (np.abs(v) < 0.42),
    "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.2),
    "ell": lambda u, v: (np.maximum(np.abs(u), np.abs(v)) < 0.95) & ((u < -0.2) | (v > 0.2)),
    "dome": lambda u, v: (u**2 + (v - 0.55) ** 2 * 0.45 < 1) & (v < 0.55),
    "hourglass": lambda u, v: (np.abs(v) < 1) & (np.abs(u) < 0.15 + 0.75 * np.abs(v)),
    "flower": lambda u, v: np.hypot(u, v) < 0.72 + 0.28 * np.cos(6 * np.arctan2(v, u)),
    "tee": lambda u, v: (
        (np.maximum(np.abs(u), np.abs(v)) < 0.95) & ((v < -0.3) | (np.abs(u) < 0.33))
    ),
}

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 36),
    "orange": (245, 135, 20),
    "yellow": (248, 220, 40),
    "lime": (150, 215, 45),
    "green": (25, 125, 50),
    "cyan": (50, 205, 215),
    "blue": (30, 75, 205),
    "purple": (120, 40, 160),
    "pink": (245, 130, 185),
    "brown": (115, 65, 30),
    "white": (245, 245, 242),
    "black": (25, 25, 30),
}

# Regions of the same plane that the marks cover.
MARKS: dict[str, _Region] = {
    "plain": lambda u, v: np.zeros(u.shape, dtype=bool),
    "spotted": lambda u, v: np.hypot(u % 0.66 - 0.33, v % 0.66 - 0.33) < 0.19,
    "striped": lambda u, v: u % 0.5 < 0.22,
    "checked": lambda u, v: (u % 0.9 < 0.45) ^ (v % 0.9 < 0.45),
    "banded": lambda u, v: np.abs(v) < 0.22,
    "halved": lambda u, v: v > 0.1,
    "hatched": lambda u, v: ((u + v) % 0.7 < 0.2) | ((u - v) % 0.7 < 0.2),
    "dotted": lambda u, v: u**2 + v**2 < 0.16,
}


@dataclass(frozen=True)
class Appearance:
    """Appearance of the objects of a class."""

    color: str
    mark: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.color}_{self.mark}_{self.shape}"


MAX_CLASSES = len(SHAPES) * len(COLORS) * len(MARKS)


def choose_appearances(num_classes: int, num_head: int, seed: int) -> list[Appearance]:
    """
    Choose the appearance of each class, from the most to the least frequent class.

    The first 60% differ in shape first, then in color and mark. Each of the others looks like one
    of the first ``num_head`` classes, but for its color or its mark.
    """
    rng = np.random.default_rng([seed, num_classes])
    shapes, colors, marks = ([str(x) for x in rng.permutation(list(kinds))] for kinds in _KINDS)

    def base(i: int) -> Appearance:
        # All appearances are distinct: i % 192 sets shape and color, i // 192 shifts the mark.
        turn, rest = divmod(i, len(shapes) * len(colors))
        return Appearance(
            shape=shapes[rest % len(shapes)],
            color=colors[(rest + rest // len(shapes)) % len(colors)],
            mark=marks[(rest + turn) % len(marks)],
        )

    chosen = [base(i) for i in range(num_classes - int(0.4 * num_classes))]
    taken = set(chosen)
    while len(chosen) < num_classes:
        head = chosen[len(chosen) % num_head]
        similar = [Appearance(color, head.mark, head.shape) for color in colors]
        if rng.random() < 0.5:
            similar = [Appearance(head.color, mark, head.shape) for mark in marks]
        free = [x for x in similar if x not in taken]
        if not free:  # happens with more than 1,000 classes
            free = [x for x in map(base, range(MAX_CLASSES)) if x not in taken]
        chosen.append(free[int(rng.integers(len(free)))])
        taken.add(chosen[-1])
    return chosen


_KINDS = (SHAPES, COLORS, MARKS)


def are_look_alikes(a: Appearance, b: Appearance) -> bool:
    """Return True if two appearances have the same shape and differ only in color or mark."""
    return a != b and a.shape == b.shape and (a.color == b.color or a.mark == b.mark)


def render_object(
    appearance: Appearance, size: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """
    Render an object with a random tilt, aspect ratio and lighting.

    Args:
        appearance: appearance of its class.
        size: length of the longer side in pixels, before tilting.
        rng: random generator.

    Returns:
        Color, float32 in [0, 255], shape (H, W, 3), and coverage, float32 in [0, 1], shape (H, W),
        cropped to the object.
    """
    tilt = rng.uniform(-0.3, 0.3)
    stretch = rng.uniform(0.8, 1.25)
    half_u, half_v = size / 2 * min(stretch, 1), size / 2 * min(1 / stretch, 1)
    side = 2 * int(np.ceil(size * 0.71)) + 2
    grid = (np.arange(2 * side, dtype=np.float32) + 0.5) / 2 - side / 2  # 2 x 2 samples per pixel
    x, y = grid[None, :], grid[:, None]
    u = (np.cos(tilt) * x + np.sin(tilt) * y) / half_u
    v = (np.cos(tilt) * y - np.sin(tilt) * x) / half_v

    inside = SHAPES[appearance.shape](u, v)
    inside &= np.maximum(np.abs(u), np.abs(v)) <= 1
    marked = MARKS[appearance.mark](u, v) & inside
    coverage, mark = (
        part.astype(np.float32).reshape(side, 2, side, 2).mean(3).mean(1)
        for part in (inside, marked)
    )
    rows, columns = np.nonzero(coverage.any(1))[0], np.nonzero(coverage.any(0))[0]
    crop = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    coverage, mark = coverage[crop], mark[crop]

    color = np.array(COLORS[appearance.color], np.float32)
    ink = np.full(3, 245 if color @ (0.3, 0.59, 0.11) < 128 else 20, np.float32) * 0.85
    ink += color * 0.15
    share = (mark / np.maximum(coverage, 1e-6))[..., None]
    light = 1 + np.linspace(-1, 1, coverage.shape[0], dtype=np.float32) * rng.uniform(-0.12, 0.12)
    pixels = (color * (1 - share) + ink * share) * light[:, None, None]
    return (pixels + rng.uniform(-10, 10, 3)).astype(np.float32), coverage
