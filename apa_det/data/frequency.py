"""Frequency groups of categories: rare, common and frequent as in LVIS, or custom groups."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..errors import UserError
from ..utils.json_files import JSON_SUFFIXES, read_json

RARE_MAX = 10
COMMON_MAX = 100
FREQUENCY_LABELS = {"r": "rare", "c": "common", "f": "frequent"}

_RESERVED = {"", "50", "75", "s", "m", "l"}  # AP, AP50, AP75, APs, APm, APl

logger = logging.getLogger(__name__)


def frequency_group(
    image_count: int, rare_max: int = RARE_MAX, common_max: int = COMMON_MAX
) -> str:
    """
    Return the frequency group of a category from its image count.

    Args:
        image_count: number of training images with at least one instance.
        rare_max: largest image count of a rare category (LVIS: 10).
        common_max: largest image count of a common category (LVIS: 100).

    Returns:
        "r" for rare, "c" for common, "f" for frequent.

    Raises:
        UserError: the thresholds are not ``0 <= rare_max <= common_max``.
    """
    check_thresholds(rare_max, common_max)
    return "r" if image_count <= rare_max else "c" if image_count <= common_max else "f"


def check_thresholds(rare_max: int, common_max: int) -> None:
    """Raise a UserError unless ``0 <= rare_max <= common_max``."""
    if not 0 <= rare_max <= common_max:
        raise UserError(
            f"rare_max must be >= 0 and <= common_max, got rare_max {rare_max} and common_max "
            f"{common_max}."
        )


def complete_categories(
    dataset: dict, rare_max: int = RARE_MAX, common_max: int = COMMON_MAX
) -> None:
    """
    Add missing ``image_count``, ``instance_count`` and ``frequency`` to the categories.

    The annotations are counted; the frequency follows from the image count. Existing values are
    kept, so the thresholds affect only categories without ``frequency``.

    Args:
        dataset: content of an LVIS-format file; its categories are modified in place.
        rare_max: largest image count of a rare category.
        common_max: largest image count of a common category.
    """

    def count() -> tuple[Mapping[int, int], Mapping[int, int]]:
        pairs = [(a["category_id"], a["image_id"]) for a in dataset["annotations"]]
        images = Counter(category_id for category_id, _ in set(pairs))
        return images, Counter(category_id for category_id, _ in pairs)

    fill_categories(dataset["categories"], count, rare_max, common_max)


def fill_categories(
    categories: list[dict],
    count: Callable[[], tuple[Mapping[int, int], Mapping[int, int]]],
    rare_max: int,
    common_max: int,
) -> None:
    """Add missing counts and frequencies to categories; see :func:`complete_categories`.

    Args:
        categories: modified in place.
        count: returns the number of images and of instances by category id.
        rare_max, common_max: see :func:`complete_categories`.
    """
    check_thresholds(rare_max, common_max)
    if any("image_count" not in c or "instance_count" not in c for c in categories):
        images, instances = count()
        for category in categories:
            category.setdefault("image_count", images[category["id"]])
            category.setdefault("instance_count", instances[category["id"]])
    derived = [category for category in categories if "frequency" not in category]
    for category in derived:
        category["frequency"] = frequency_group(category["image_count"], rare_max, common_max)
    if derived:
        logger.info(
            "Derived the frequency group of %d of %d categories from their image counts (rare: up "
            "to %d images, common: up to %d, frequent: more).",
            len(derived),
            len(categories),
            rare_max,
            common_max,
        )


@dataclass(frozen=True)
class FrequencyGroups:
    """Groups of categories with an AP each, e.g. APr, APc and APf.

    Create them with :meth:`lvis`, :meth:`from_thresholds`, :meth:`from_mapping` or :meth:`parse`.

    Attributes:
        names: suffixes of "AP" in the metric names, from rare to frequent.
        max_counts: largest image count of each group except the last. None: use ``members``.
        members: group name of each category, by category id or name. None: use ``max_counts``.
        file_first: the ``frequency`` of a category in the file takes precedence over its image
            count.
    """

    names: tuple[str, ...]
    max_counts: tuple[int, ...] | None = None
    members: Mapping[int | str, str] | None = None
    file_first: bool = False

    def __post_init__(self):
        bad = [n for i, n in enumerate(self.names) if n in _RESERVED or n in self.names[:i]]
        if bad or not self.names:
            raise UserError(
                "The names of the frequency groups must be unique, not empty, and not 50, 75, s, m "
                "or l" + (f"; got {bad[0]!r}." if bad else ".")
            )
        if self.max_counts is not None and any(a > b for a, b in pairwise((0, *self.max_counts))):
            raise UserError(
                "The maximum image counts of the frequency groups must be >= 0 and must not "
                f"decrease, got {', '.join(map(str, self.max_counts))}."
            )

    @staticmethod
    def lvis(rare_max: int = RARE_MAX, common_max: int = COMMON_MAX) -> "FrequencyGroups":
        """Return the groups r, c and f of LVIS: from the file, else by image count."""
        check_thresholds(rare_max, common_max)
        return FrequencyGroups(("r", "c", "f"), (rare_max, common_max), file_first=True)

    @staticmethod
    def from_thresholds(groups: Sequence[tuple[str, int | None]]) -> "FrequencyGroups":
        """Return groups by image count, e.g. ``[("few", 20), ("some", 200), ("many", None)]``.

        Args:
            groups: pairs of name and maximum image count; None for the last group.

        Raises:
            UserError: invalid names or counts.
        """
        *first, last = groups
        if last[1] is not None or any(count is None for _, count in first):
            raise UserError(
                "Each frequency group except the last needs a maximum image count, and the last "
                "must not have one, e.g. r:10,c:100,f."
            )
        return FrequencyGroups(tuple(n for n, _ in groups), tuple(count for _, count in first))

    @staticmethod
    def from_mapping(members: Mapping[int | str, str]) -> "FrequencyGroups":
        """Return groups from ``{category id or name: group}``, in order of first appearance."""
        return FrequencyGroups(tuple(dict.fromkeys(members.values())), members=dict(members))

    @staticmethod
    def parse(text: str) -> "FrequencyGroups":
        """Parse "r:10,c:100,f", or read a JSON file ``{category name or id: group}``.

        Raises:
            MissingFileError: the file does not exist.
            UserError: the text or the file is invalid.
        """
        if text.endswith(JSON_SUFFIXES):
            members = read_json(text)
            if not isinstance(members, dict) or not all(map(_is_text, members.values())):
                raise UserError(f'{text} must be a JSON object {{"category": "group", ...}}.')
            return FrequencyGroups.from_mapping(members)
        pairs = [part.strip().partition(":") for part in text.split(",")]
        try:
            groups = [(name, int(count) if colon else None) for name, colon, count in pairs]
        except ValueError:
            raise UserError(
                f"Invalid frequency groups {text!r}; expected e.g. r:10,c:100,f, or a .json file."
            ) from None
        return FrequencyGroups.from_thresholds(groups)

    @property
    def labels(self) -> tuple[str, ...]:
        """Display names: rare, common and frequent for r, c and f; else the names."""
        known = FREQUENCY_LABELS.keys() >= set(self.names)
        return tuple(FREQUENCY_LABELS[name] if known else name for name in self.names)

    def named(self) -> list[tuple[str, str]]:
        """Return pairs of name and label."""
        return list(zip(self.names, self.labels, strict=True))

    def assign(self, categories: Sequence[dict]) -> np.ndarray:
        """Return the index in ``names`` of each category's group.

        Args:
            categories: dicts with ``id``, ``image_count``, and optionally ``name`` and
                ``frequency``.

        Returns:
            int64, shape (K,); -1 for categories without a group.

        Raises:
            UserError: ``members`` contains a category that is missing from ``categories``.
        """
        if self.members is not None:
            return self._by_members(categories)
        counts = [category["image_count"] for category in categories]
        groups = np.searchsorted(np.array(self.max_counts, np.int64), counts, side="left")
        if self.file_first:
            for i, category in enumerate(categories):
                if category.get("frequency") in self.names:
                    groups[i] = self.names.index(category["frequency"])
        return groups.astype(np.int64)

    def _by_members(self, categories: Sequence[dict]) -> np.ndarray:
        by_name = {category.get("name"): i for i, category in enumerate(categories)}
        by_id = {category["id"]: i for i, category in enumerate(categories)}
        groups = np.full(len(categories), -1, np.int64)
        for key, name in self.members.items():
            i = by_name.get(key, by_id.get(key))
            if i is None and isinstance(key, str) and key.isdecimal():  # JSON keys are strings
                i = by_id.get(int(key))
            if i is None:
                raise UserError(
                    f"The frequency groups contain the category {key!r}, which is not in the "
                    "dataset. Remove it."
                )
            groups[i] = self.names.index(name)
        return groups


def _is_text(value) -> bool:
    return isinstance(value, str)
