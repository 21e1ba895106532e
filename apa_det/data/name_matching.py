"""Matching of class names, exactly or except for case and separators."""

import re
from collections import Counter
from collections.abc import Sequence


def match_classes(names: Sequence[str], source_names: Sequence[str]) -> list[int | None]:
    """Return the index of the source class with the same name for each class, or None.

    If no name is identical, names match that differ only in case and in underscores, hyphens or
    spaces between words. Names that occur twice in the source are not matched.
    """
    exact = _indices(source_names)
    loose = _indices([_normalize(name) for name in source_names])
    return [exact.get(name, loose.get(_normalize(name))) for name in names]


def match_names(names: Sequence[str], source_names: Sequence[str]) -> list[int | None]:
    """Match as :func:`match_classes` does, but each source class with at most one class."""
    matches = match_classes(names, source_names)
    counts, known = Counter(matches), {*names}
    result = []
    for name, match in zip(names, matches, strict=True):
        if match is not None and source_names[match] != name:
            if counts[match] > 1 or source_names[match] in known:
                match = None
        result.append(match)
    return result


def _indices(names: Sequence[str]) -> dict[str, int]:
    counts = Counter(names)
    return {name: i for i, name in enumerate(names) if counts[name] == 1}


def _normalize(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))
