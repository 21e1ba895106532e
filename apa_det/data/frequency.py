"""Frequency groups of categories, by image count: LVIS's rare, common and frequent, or others."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..utils.json_files import read_json

__all__ = [
    "COMMON_MAX",
    "FREQUENCY_LABELS",
    "RARE_MAX",
    "FrequencyGroups",
    "complete_categories",
    "frequency_group",
]

RARE_MAX = 10
COMMON_MAX = 100
FREQUENCY_LABELS = {"r": "rare", "c": "common", "f": "frequent"}

_TAKEN = {"", "50", "75", "s", "m", "l"}  # APs is that of small objects

logger = logging.getLogger(__name__)


def frequency_group(
    image_count: int, rare_max: int = RARE_MAX, common_max: int = COMMON_MAX
) -> str:
    """
    The frequency group of a category, by the number of training pictures that hold it.

    Args:
        image_count: number of training pictures with at least one instance.
        rare_max: largest image count of a rare category (LVIS: 10).
        common_max: largest image count of a common category (LVIS: 100).

    Returns:
        "r" for rare, "c" for common, "f" for frequent.

    Raises:
        ValueError: ``rare_max`` is negative, or above ``common_max``.
    """
    check_thresholds(rare_max, common_max)
    return "r" if image_count <= rare_max else "c" if image_count <= common_max else "f"


def check_thresholds(rare_max: int, common_max: int) -> None:
    """Raise a ValueError unless ``0 <= rare_max <= common_max``."""
    if not 0 <= rare_max <= common_max:
        raise ValueError(
            f"rare_max must be at least 0 and at most common_max, not {rare_max} with "
            f"common_max {common_max}"
        )


def complete_categories(
    dataset: dict, rare_max: int = RARE_MAX, common_max: int = COMMON_MAX
) -> None:
    """
    Give each category the ``image_count``, ``instance_count`` and ``frequency`` that it lacks.

    Counts are those of the annotations. A frequency is derived from the image count, so the
    thresholds do not touch a frequency that the file gives.

    Args:
        dataset: content of an LVIS-format file; its categories are changed in place.
        rare_max: largest image count of a rare category.
        common_max: largest image count of a common category.
    """
    check_thresholds(rare_max, common_max)
    categories = dataset["categories"]
    if any("image_count" not in c or "instance_count" not in c for c in categories):
        pairs = [(a["category_id"], a["image_id"]) for a in dataset["annotations"]]
        instances = Counter(category_id for category_id, _ in pairs)
        images = Counter(category_id for category_id, _ in set(pairs))
        for category in categories:
            category.setdefault("image_count", images[category["id"]])
            category.setdefault("instance_count", instances[category["id"]])
    lacking = [category for category in categories if "frequency" not in category]
    for category in lacking:
        category["frequency"] = frequency_group(category["image_count"], rare_max, common_max)
    if lacking:
        logger.info(
            "Derived the frequency group of %d of %d categories from their image counts: up to %d "
            "rare, up to %d common, else frequent.",
            len(lacking),
            len(categories),
            rare_max,
            common_max,
        )


@dataclass(frozen=True)
class FrequencyGroups:
    """Groups of categories, each with an AP of its own: APr, APc and APf.

    Make them by :meth:`lvis`, :meth:`from_thresholds`, :meth:`from_mapping` or :meth:`parse`.

    Attributes:
        names: what follows "AP" in the name of the metric, from rare to frequent.
        largest: the largest image count of each group but the last. None: ``members`` tells.
        members: the group of each category, by its id or name. None: ``largest`` tells.
        file_first: a category that has a ``frequency`` in its file is of that group.
    """

    names: tuple[str, ...]
    largest: tuple[int, ...] | None = None
    members: Mapping[int | str, str] | None = None
    file_first: bool = False

    def __post_init__(self):
        bad = [n for i, n in enumerate(self.names) if n in _TAKEN or n in self.names[:i]]
        if bad or not self.names:
            raise ValueError(
                "Each frequency group needs a name of its own, other than 50, 75, s, m and l"
                + (f", not {bad[0]!r}." if bad else ".")
            )
        if self.largest is not None and any(a > b for a, b in pairwise((0, *self.largest))):
            raise ValueError(
                "The largest image counts of the frequency groups must not fall from one to the "
                f"next, not {', '.join(map(str, self.largest))}."
            )

    @staticmethod
    def lvis(rare_max: int = RARE_MAX, common_max: int = COMMON_MAX) -> "FrequencyGroups":
        """LVIS's r, c and f: as the file says, else by image count."""
        check_thresholds(rare_max, common_max)
        return FrequencyGroups(("r", "c", "f"), (rare_max, common_max), file_first=True)

    @staticmethod
    def from_thresholds(groups: Sequence[tuple[str, int | None]]) -> "FrequencyGroups":
        """Groups by image count alone: ``[("few", 20), ("some", 200), ("many", None)]``.

        Each has its largest image count, and the last None.
        """
        *first, last = groups
        if last[1] is not None or any(largest is None for _, largest in first):
            raise ValueError(
                "Each frequency group but the last needs its largest image count, and the last "
                "takes the rest: write them as r:10,c:100,f."
            )
        return FrequencyGroups(tuple(n for n, _ in groups), tuple(largest for _, largest in first))

    @staticmethod
    def from_mapping(members: Mapping[int | str, str]) -> "FrequencyGroups":
        """Groups that list their categories, by id or name; in the order of first appearance."""
        return FrequencyGroups(tuple(dict.fromkeys(members.values())), members=dict(members))

    @staticmethod
    def parse(text: str) -> "FrequencyGroups":
        """From "r:10,c:100,f", or from a JSON file ``{category name or id: group}``.

        Raises:
            FileNotFoundError, ValueError: the text or the file is neither.
        """
        if text.endswith(".json"):
            members = read_json(text)
            if not isinstance(members, dict) or not all(map(_is_text, members.values())):
                raise ValueError(f'{text} must be a JSON object {{"category": "group", ...}}.')
            return FrequencyGroups.from_mapping(members)
        pairs = [part.strip().partition(":") for part in text.split(",")]
        try:
            groups = [(name, int(largest) if colon else None) for name, colon, largest in pairs]
        except ValueError:
            raise ValueError(
                f"{text!r} are no frequency groups: write names with their largest image counts, "
                "such as r:10,c:100,f, or name a .json file."
            ) from None
        return FrequencyGroups.from_thresholds(groups)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names for people: rare, common and frequent where the names are r, c and f."""
        known = FREQUENCY_LABELS.keys() >= set(self.names)
        return tuple(FREQUENCY_LABELS[name] if known else name for name in self.names)

    def named(self) -> list[tuple[str, str]]:
        """Pairs of name and label."""
        return list(zip(self.names, self.labels, strict=True))

    def assign(self, categories: Sequence[dict]) -> np.ndarray:
        """The place in ``names`` of each category's group.

        Args:
            categories: with ``id``, ``image_count``, and maybe ``name`` and ``frequency``.

        Returns:
            (K,) int64, -1 for a category of no group.

        Raises:
            ValueError: ``members`` name a category that is not there.
        """
        if self.members is not None:
            return self._by_members(categories)
        counts = [category["image_count"] for category in categories]
        groups = np.searchsorted(np.array(self.largest, np.int64), counts, side="left")
        if self.file_first:
            for i, category in enumerate(categories):
                if category.get("frequency") in self.names:
                    groups[i] = self.names.index(category["frequency"])
        return groups.astype(np.int64)

    def _by_members(self, categories: Sequence[dict]) -> np.ndarray:
        place = {category.get("name"): i for i, category in enumerate(categories)}
        by_id = {category["id"]: i for i, category in enumerate(categories)}
        groups = np.full(len(categories), -1, np.int64)
        for key, name in self.members.items():
            i = place.get(key, by_id.get(key))
            if i is None and isinstance(key, str) and key.isdecimal():  # JSON knows no other keys
                i = by_id.get(int(key))
            if i is None:
                raise ValueError(
                    f"The frequency groups name the category {key!r}, which the dataset lacks."
                )
            groups[i] = self.names.index(name)
        return groups


def _is_text(value) -> bool:
    return isinstance(value, str)
