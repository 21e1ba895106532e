"""Weights for other classes: the rows of the heads' last layers, mapped by class name."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from ..data import ensure_metadata
from ..data.frequency import FREQUENCY_LABELS
from ..utils.json_files import read_json
from .conversion import OPTIONAL_BUFFERS

__all__ = ["ClassTransfer", "Rows", "match_classes", "read_class_names", "transfer_rows"]

logger = logging.getLogger(__name__)

# The layers whose rows are classes: in the model's names, for all architectures with such heads.
_SCORES = re.compile(r"(.*\.)?cls_score\.(weight|bias|g)")
_BOXES = re.compile(r"(.*\.)?bbox_pred\.(weight|bias)")
_MASKS = re.compile(r"(.*\.)?mask_head\.predictor\.(weight|bias)")
_CURVES = re.compile(r"(.*\.)?box_predictor(\.\d+)?\.score\.(lambda_param|kappa_param)")


class ClassTransfer(NamedTuple):
    """A start from the checkpoint of other classes, by class name.

    Attributes:
        source: where the checkpoint's classes are, see :func:`read_class_names`.
        names: the classes of the model.
        groups: the frequency group of each, for the log.
    """

    source: str
    names: Sequence[str]
    groups: Sequence[str] | None = None

    def __call__(
        self, checkpoint: Mapping, state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Map the rows of a checkpoint, and list in the log the classes that start at random.

        Args:
            checkpoint: as :func:`load_checkpoint` returns it.
            state: its weights, under the model's names.
            model_state: the model's state dict.

        Raises:
            FileNotFoundError, ValueError: the classes are not known, or not those of the file.
        """
        source_names = read_class_names(self.source, checkpoint)
        matches = match_classes(self.names, source_names)
        rows = transfer_rows(state, model_state, matches, len(source_names))
        if not rows.tensors:
            raise ValueError(
                "none of its layers is a class score of the model: leave MODEL.TRANSFER_FROM empty."
            )
        known = [i for i, match in enumerate(matches) if match is not None]
        if not known:
            raise ValueError(
                f"it is of {', '.join(source_names[:3])}, ..., and none of the training set's "
                f"classes, {', '.join(self.names[:3])}, ..., has such a name: leave "
                "MODEL.TRANSFER_FROM empty, or name the classes it was trained on."
            )
        same = sum(self.names[i] == source_names[matches[i]] for i in known)
        logger.info(
            "%d of %d classes are among the checkpoint's %d: %d of the same name, %d but for case, "
            "underscores or hyphens. Their rows are taken over in %s.",
            *(len(known), len(self.names), len(source_names), same, len(known) - same),
            ", ".join(rows.tensors),
        )
        if len(known) < len(self.names):
            logger.warning(
                "%d classes are not among the checkpoint's, and their rows start at random:\n  %s",
                len(self.names) - len(known),
                "\n  ".join(self._by_group([i for i, m in enumerate(matches) if m is None])),
            )
        return rows.state

    def _by_group(self, classes: Sequence[int]) -> list[str]:
        if self.groups is None:
            return [", ".join(self.names[i] for i in classes)]
        ordered = sorted(classes, key=lambda i: ("rcf".find(self.groups[i]), i))
        lines = []
        for group, members in groupby(ordered, key=lambda i: self.groups[i]):
            names = [self.names[i] for i in members]
            label = FREQUENCY_LABELS.get(group, group)
            lines.append(f"{len(names)} {label}: {', '.join(names)}")
        return lines


class Rows(NamedTuple):
    """What :func:`transfer_rows` took over.

    ``tensors`` names them; ``state`` is the new state dict.
    """

    state: dict[str, Tensor]
    tensors: list[str]


def read_class_names(source: str, checkpoint: Mapping) -> list[str]:
    """The classes that a checkpoint was trained on, in the order of its rows.

    Args:
        source: "checkpoint" for those that the file itself holds as ``class_names``; a registered
            dataset; or a JSON file, either a list of names or in LVIS or COCO format, where classes
            are ordered by id.
        checkpoint: as :func:`load_checkpoint` returns it.

    Raises:
        FileNotFoundError, ValueError: there are no such names.
    """
    if source == "checkpoint":
        names = checkpoint.get("class_names")
        if names is None:
            raise ValueError(
                "it holds no class_names, as files of apa_det's trainers do: name the dataset that "
                "it was trained on, or a JSON file with the list of its classes, as "
                "MODEL.TRANSFER_FROM."
            )
        return list(names)
    if source in DatasetCatalog:
        ensure_metadata(source)
        names = MetadataCatalog.get(source).get("thing_classes")
        if names is None:
            raise ValueError(f"MODEL.TRANSFER_FROM: the dataset {source} names no classes.")
        return list(names)
    if not source.endswith(".json"):
        raise ValueError(
            f"MODEL.TRANSFER_FROM is {source}: it is checkpoint, a registered dataset or a .json "
            "file with the classes of MODEL.WEIGHTS."
        )
    found = read_json(source)
    if isinstance(found, dict) and isinstance(found.get("categories"), list):
        try:
            found = [c["name"] for c in sorted(found["categories"], key=lambda c: c["id"])]
        except (KeyError, TypeError):
            found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ValueError(
            f"{source} holds no classes: it must be a JSON list of names in the order of the "
            "checkpoint's rows, or a file in LVIS or COCO format."
        )
    return found


def match_classes(names: Sequence[str], source_names: Sequence[str]) -> list[int | None]:
    """For each class the place of the source's class of the same name, or None.

    A name that is not there as it is may differ in case, and in underscores, hyphens or blanks
    between its words. One that the source has twice is not matched.
    """
    exact = _places(source_names)
    loose = _places([_plain(name) for name in source_names])
    return [exact.get(name, loose.get(_plain(name))) for name in names]


def _places(names: Sequence[str]) -> dict[str, int]:
    counts = Counter(names)
    return {name: i for i, name in enumerate(names) if counts[name] == 1}


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))


def transfer_rows(
    state: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    matches: Sequence[int | None],
    num_source_classes: int,
) -> Rows:
    """Give a model of K classes the rows of a checkpoint of K' classes.

    These are the class score (linear, normed or wrapped Cauchy, of a box predictor, of each in a
    cascade, or of a one-stage head with several anchors), λ and κ of each class, the box deltas of
    each class, and the channels of the mask predictor. Rows of no class, such as the background's,
    are taken over where both have as many, and what all classes share as it is. A row without
    counterpart stays the model's.

    Args:
        state: the checkpoint's weights, under the model's names.
        model_state: the model's state dict.
        matches: of the K classes, as :func:`match_classes` gives them.
        num_source_classes: K'.

    Raises:
        ValueError: a class score in the checkpoint is not of K' classes.
    """
    num_classes = len(matches)
    pairs = [(i, j) for i, j in enumerate(matches) if j is not None]
    result, tensors = {}, []
    for name, value in state.items():
        own = model_state.get(name)
        if name.endswith(OPTIONAL_BUFFERS) or ".class_loss." in name:
            continue  # what losses counted on the other classes
        result[name] = value
        if own is None or own.dim() != value.dim():
            continue
        dim = 1 if _CURVES.fullmatch(name) else 0
        if own.dim() <= dim:
            continue
        to = _rows_of_classes(name, own.shape[dim], num_classes, range(own.shape[dim]))
        extra = range(2) if to is None else {0, 1, len(to.others)}
        source = _rows_of_classes(name, value.shape[dim], num_source_classes, extra)
        if source is None and to is not None and _SCORES.fullmatch(name):
            raise ValueError(
                f"its {name} has {value.shape[0]} rows, which are not those of the "
                f"{num_source_classes} classes of MODEL.TRANSFER_FROM: name the classes that it "
                "was trained on."
            )
        if to is None or source is None or len(to.classes[0]) != len(source.classes[0]):
            continue
        rows = [
            (r, s) for i, j in pairs for r, s in zip(to.classes[i], source.classes[j], strict=True)
        ]
        if len(to.others) == len(source.others):
            rows += zip(to.others, source.others, strict=True)
        others = (*own.shape[:dim], *own.shape[dim + 1 :])
        if others != (*value.shape[:dim], *value.shape[dim + 1 :]):
            continue
        to_rows, source_rows = torch.tensor(rows, dtype=torch.long).reshape(-1, 2).T
        taken = value.to(own.device, own.dtype).index_select(dim, source_rows.to(own.device))
        result[name] = own.detach().clone().index_copy_(dim, to_rows.to(own.device), taken)
        tensors.append(name)
    return Rows(result, tensors)


class _Layout(NamedTuple):
    """The rows of each class, and those of no class, such as the background's."""

    classes: list[list[int]]
    others: list[int]


def _rows_of_classes(
    name: str, num_rows: int, num_classes: int, num_others: Collection[int]
) -> _Layout | None:
    """None: the rows are no classes. A box predictor's others are as many as one of these."""
    classes, others = range(num_classes), num_rows - num_classes
    if _SCORES.fullmatch(name) and "box_predictor" in name:
        if others in num_others:
            return _Layout([[i] for i in classes], list(range(num_classes, num_rows)))
    elif _SCORES.fullmatch(name):
        if num_rows % num_classes == 0:  # the classes of each anchor, one anchor after the other
            return _Layout([list(range(i, num_rows, num_classes)) for i in classes], [])
    elif _BOXES.fullmatch(name):
        if num_rows == 4 * num_classes:
            return _Layout([list(range(4 * i, 4 * i + 4)) for i in classes], [])
    elif (_MASKS.fullmatch(name) or _CURVES.fullmatch(name)) and others == 0:
        return _Layout([[i] for i in classes], [])
    return None
