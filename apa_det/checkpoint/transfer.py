"""Transfer weights to other classes: rows of the heads' last layers, matched by class name."""

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from ..data import ensure_metadata
from ..data.frequency import FREQUENCY_LABELS
from ..data.name_matching import match_classes
from ..errors import UserError
from ..text import printable
from ..utils.json_files import read_json
from .conversion import OPTIONAL_BUFFERS

logger = logging.getLogger(__name__)

# Names of the layers whose rows are classes, in all supported architectures
_SCORES = re.compile(r"(.*\.)?cls_score\.(weight|bias|g)")
_BOXES = re.compile(r"(.*\.)?bbox_pred\.(weight|bias)")
_MASKS = re.compile(r"(.*\.)?mask_head\.predictor\.(weight|bias)")
_CURVES = re.compile(r"(.*\.)?(box_predictor(\.\d+)?|head)\.score\.(lambda_param|kappa_param)")


class ClassTransfer(NamedTuple):
    """Initialization from a checkpoint of other classes, matched by name.

    Attributes:
        source: where the class names of the checkpoint are; see :func:`read_class_names`.
        names: classes of the model.
        groups: frequency group of each, for the log.
    """

    source: str
    names: Sequence[str]
    groups: Sequence[str] | None = None

    def __call__(
        self, checkpoint: Mapping, state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the state dict with its class rows matched; log the classes without a match.

        Args:
            checkpoint: as returned by :func:`load_checkpoint`.
            state: its weights, under the model's names.
            model_state: the model's state dict.

        Raises:
            UserError: the class names are unknown, or are not those of the checkpoint.
        """
        source_names = read_class_names(self.source, checkpoint)
        matches = match_classes(self.names, source_names)
        rows = transfer_rows(state, model_state, matches, len(source_names))
        if not rows.tensors:
            raise UserError(
                "none of its layers is a class score of the model. Leave MODEL.TRANSFER_FROM empty."
            )
        matched = [i for i, match in enumerate(matches) if match is not None]
        if not matched:
            raise UserError(
                f"none of its classes ({_listed(source_names[:3])}, ...) is a class of the "
                f"training set ({_listed(self.names[:3])}, ...). Leave MODEL.TRANSFER_FROM "
                "empty, or set it to the classes that the checkpoint was trained on."
            )
        same = sum(self.names[i] == source_names[matches[i]] for i in matched)
        logger.info(
            "%d of %d classes match one of the checkpoint's %d: %d exactly, %d except for case, "
            "underscores or hyphens. Their rows were copied in %s.",
            *(len(matched), len(self.names), len(source_names), same, len(matched) - same),
            ", ".join(rows.tensors),
        )
        if len(matched) < len(self.names):
            logger.warning(
                "%d classes match none of the checkpoint's. Their rows keep their initialization:"
                "\n  %s",
                len(self.names) - len(matched),
                "\n  ".join(self._by_group([i for i, m in enumerate(matches) if m is None])),
            )
        return rows.state

    def _by_group(self, classes: Sequence[int]) -> list[str]:
        if self.groups is None:
            return [_listed(self.names[i] for i in classes)]
        ordered = sorted(classes, key=lambda i: ("rcf".find(self.groups[i]), i))
        lines = []
        for group, members in groupby(ordered, key=lambda i: self.groups[i]):
            names = [self.names[i] for i in members]
            label = FREQUENCY_LABELS.get(group, group)
            lines.append(f"{len(names)} {label}: {_listed(names)}")
        return lines


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(printable, names))


class TransferredRows(NamedTuple):
    """Result of :func:`transfer_rows`: the state dict, and the names of the tensors it changed."""

    state: dict[str, Tensor]
    tensors: list[str]


def read_class_names(source: str, checkpoint: Mapping) -> list[str]:
    """Return the classes that a checkpoint was trained on, in the order of its rows.

    Args:
        source: "checkpoint" for the ``class_names`` in the checkpoint; a registered dataset; or a
            JSON file, either a list of names or in LVIS or COCO format (ordered by category id).
        checkpoint: as returned by :func:`load_checkpoint`.

    Raises:
        UserError: the source is missing or has no class names.
    """
    if source == "checkpoint":
        names = stored_class_names(checkpoint)
        if names is None:
            raise UserError(
                "it has no class_names, which apa_det saves in training. Set MODEL.TRANSFER_FROM "
                "to the dataset that it was trained on, or to a JSON list of its classes."
            )
        return names
    if source in DatasetCatalog:
        ensure_metadata(source)
        names = MetadataCatalog.get(source).get("thing_classes")
        if names is None:
            raise UserError(f"MODEL.TRANSFER_FROM: the dataset {source} has no thing_classes.")
        return list(names)
    if not source.endswith(".json"):
        raise UserError(
            "MODEL.TRANSFER_FROM must be checkpoint, a registered dataset or a .json file with the "
            f"classes of MODEL.WEIGHTS; got {source!r}."
        )
    found = read_json(source)
    if isinstance(found, dict) and isinstance(found.get("categories"), list):
        try:
            found = [c["name"] for c in sorted(found["categories"], key=lambda c: c["id"])]
        except (KeyError, TypeError):
            found = None
    if not _are_names(found):
        raise UserError(
            f"{source} has no class names. It must be a JSON list of names in the order of the "
            "checkpoint's rows, or a file in LVIS or COCO format."
        )
    return found


def stored_class_names(checkpoint: Mapping) -> list[str] | None:
    """Return the ``class_names`` in a checkpoint; None if it has none.

    Raises:
        UserError: they are not strings.
    """
    names = checkpoint.get("class_names")
    if names is None:
        return None
    if not _are_names(names):
        raise UserError("its class_names are not a list of strings, as apa_det saves them.")
    return list(names)


def _are_names(value: object) -> bool:
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return is_list and all(isinstance(name, str) for name in value)


def transfer_rows(
    state: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    matches: Sequence[int | None],
    num_source_classes: int,
) -> TransferredRows:
    """Copy the rows of a checkpoint of K' classes for a model of K classes.

    Rows are copied in class scores (linear, normed or wrapped Cauchy; of one box predictor, of
    each in a cascade, or of a one-stage head with several anchors), in λ and κ per class, in box
    deltas per class, and in the mask predictor. Rows of no class, such as the background's, are
    copied if both sides have equally many. Tensors shared by all classes are copied whole.
    Unmatched rows keep their initialization.

    Args:
        state: the checkpoint's weights, under the model's names.
        model_state: the model's state dict.
        matches: for each of the K classes, as returned by :func:`match_classes`.
        num_source_classes: K'.

    Raises:
        UserError: a class score in the checkpoint does not have K' classes.
    """
    num_classes = len(matches)
    pairs = [(i, j) for i, j in enumerate(matches) if j is not None]
    result, tensors = {}, []
    for name, value in state.items():
        own = model_state.get(name)
        if name.endswith(OPTIONAL_BUFFERS) or ".class_loss." in name:
            continue  # statistics of the source classes
        result[name] = value
        if own is None or own.dim() != value.dim():
            continue
        dim = 1 if _CURVES.fullmatch(name) else 0
        if own.dim() <= dim:
            continue
        to = _row_layout(name, own.shape[dim], num_classes, range(own.shape[dim]))
        extra = range(2) if to is None else {0, 1, len(to.others)}
        source = _row_layout(name, value.shape[dim], num_source_classes, extra)
        if source is None and to is not None and _SCORES.fullmatch(name):
            raise UserError(
                f"its {name} has {value.shape[0]} rows, which does not fit the "
                f"{num_source_classes} classes of MODEL.TRANSFER_FROM. Name the classes that it "
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
    return TransferredRows(result, tensors)


class _RowLayout(NamedTuple):
    """The rows of each class, and the rows of no class, such as the background's."""

    classes: list[list[int]]
    others: list[int]


def _row_layout(
    name: str, num_rows: int, num_classes: int, num_others: Collection[int]
) -> _RowLayout | None:
    """Return None if the rows are not classes.

    ``num_others``: the allowed numbers of rows of no class in a box predictor.
    """
    classes, others = range(num_classes), num_rows - num_classes
    if _SCORES.fullmatch(name) and "box_predictor" in name:
        if others in num_others:
            return _RowLayout([[i] for i in classes], list(range(num_classes, num_rows)))
    elif _SCORES.fullmatch(name):
        if num_rows % num_classes == 0:  # all classes of the first anchor come first
            return _RowLayout([list(range(i, num_rows, num_classes)) for i in classes], [])
    elif _BOXES.fullmatch(name):
        if num_rows == 4 * num_classes:
            return _RowLayout([list(range(4 * i, 4 * i + 4)) for i in classes], [])
    elif (_MASKS.fullmatch(name) or _CURVES.fullmatch(name)) and others == 0:
        return _RowLayout([[i] for i in classes], [])
    return None
