"""Loading of checkpoints that says what it does not load."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from urllib.parse import parse_qs

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from torch import nn

from ..checkpoint import ClassTransfer, adapt, load_checkpoint
from ..checkpoint.conversion import OPTIONAL_BUFFERS
from .ema import averaged_state
from .freezing import matches, require_matches
from .parallel import full_state

__all__ = ["ShardedCheckpointer", "StrictCheckpointer", "class_arguments"]

logger = logging.getLogger(__name__)


class StrictCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which can insist that a file fills the whole model.

    Attributes:
        strict: whether it is an error (ValueError) that the file lacks a parameter of the model,
            has it in another shape, or has one more in a part of the network that the model has
            (a whole head more is fine). If not, one warning lists all that keep their initial
            values, and only a file that fills nothing is an error.
        averaged: whether to fill the model with the averaged weights of a file that has them
            (``SOLVER.EMA``).
        class_names: the classes of the model, which are saved with it as ``class_names``.
        transfer: maps the rows of a file of other classes by their names. For training's start.
        reinitialized: patterns of the names of parameters that keep their initial values. For
            training's start too: where ``strict``, all of the file is taken.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        strict: bool = True,
        averaged: bool = False,
        class_names: Sequence[str] | None = None,
        transfer: ClassTransfer | None = None,
        reinitialized: Sequence[str] = (),
        **kwargs,
    ):
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self.averaged = averaged
        self.class_names = class_names
        self.transfer = transfer
        self.reinitialized = reinitialized
        key = "MODEL.REINITIALIZE (in a LazyConfig, train.reinitialize)"
        require_matches(self.model, reinitialized, key)

    def save(self, name: str, **kwargs) -> None:
        if self.class_names is not None:
            kwargs = {"class_names": list(self.class_names), **kwargs}
        super().save(name, **kwargs)

    def load(self, path: str, *args, **kwargs) -> dict:
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict:
        """detectron2's, for every format of :func:`load_checkpoint`, and without running a file."""
        checkpoint = load_checkpoint(filename)
        query = parse_qs(self._parsed_url_during_load.query)
        if query.pop("matching_heuristics", ["False"]) == ["True"]:
            checkpoint["matching_heuristics"] = True
        if query:
            raise ValueError(
                f"{self._path}: the part after the question mark can be matching_heuristics=True, "
                "and nothing else."
            )
        if self.averaged:
            has_average = isinstance(checkpoint.get("ema"), dict)
            if has_average:
                checkpoint["model"] = averaged_state(checkpoint["ema"])
            which = "its averaged weights" if has_average else "no averaged weights: taking its own"
            logger.info("%s: %s (SOLVER.EMA)", self._path, which)
        try:
            adapted = adapt(checkpoint, self.model)
            return adapted if self.strict else self._for_a_start(checkpoint, adapted)
        except ValueError as error:
            raise ValueError(f"{self._path}: {error}") from error

    def _for_a_start(self, checkpoint: dict, adapted: dict) -> dict:
        """With the rows of the classes mapped, and without what starts anew."""
        state = {name.removeprefix("module."): t for name, t in adapted["model"].items()}
        known = checkpoint.get("class_names")
        if self.transfer is not None:
            state = self.transfer(checkpoint, state, self._model_state())
        elif None not in (known, self.class_names) and list(known) != list(self.class_names):
            logger.warning(
                "%s is of other classes than the training set, or of another order. Their rows are "
                "taken as they are; MODEL.TRANSFER_FROM checkpoint maps them by name.",
                self._path,
            )
        state = {k: v for k, v in state.items() if not matches(k, self.reinitialized)}
        return {**adapted, "model": state}

    def _model_state(self) -> dict:
        return self.model.state_dict()

    def _log_incompatible_keys(self, incompatible) -> None:
        missing = self._without_aliases(incompatible.missing_keys)
        shapes = {name: shapes for name, *shapes in incompatible.incorrect_shapes}
        surplus = self._within_model(incompatible.unexpected_keys)
        if self.strict and (shapes or missing or surplus):
            misfit = _first_misfit(shapes, missing, surplus)
            raise ValueError(
                f"{self._path} does not fit the model: {misfit}. With "
                "--eval-only and --resume a file fills the whole model, so use the config it was "
                "trained with, its number of classes above all. To train other classes from it, "
                "name it as MODEL.WEIGHTS, without --resume."
            )
        names = dict(self.model.named_parameters())
        if names.keys() <= {*shapes, *incompatible.missing_keys}:
            raise ValueError(
                f"{self._path} holds no parameter of the model: it names {next(iter(names))} and "
                "the others differently, or in another shape."
            )
        if shapes or missing:
            lines = [
                f"{name} ({file_shape} in the file, {model_shape} in the model)"
                for name, (file_shape, model_shape) in shapes.items()
            ]
            logger.warning(
                "%s fills a part of the model. The rest starts from its initial values:\n  %s",
                self._path,
                "\n  ".join(lines + _grouped(missing)),
            )
        gathered = [k for k in incompatible.missing_keys if ".class_loss." in k]
        if gathered:
            logger.info(
                "%s does not hold what the class loss gathers in training, which starts anew: %s",
                *(self._path, ", ".join(_grouped(gathered))),
            )
        unexpected = [k for k in incompatible.unexpected_keys if not k.endswith(OPTIONAL_BUFFERS)]
        super()._log_incompatible_keys(
            incompatible._replace(missing_keys=[], incorrect_shapes=[], unexpected_keys=unexpected)
        )

    def _without_aliases(self, missing: list[str]) -> list[str]:
        """Without parameters that the file has under another name, and without unused buffers."""
        state = self.model.state_dict(keep_vars=True)
        filled = {id(state[name]) for name in state.keys() - set(missing)}
        return [
            k for k in missing if id(state[k]) not in filled and not k.endswith(OPTIONAL_BUFFERS)
        ]

    def _within_model(self, unexpected: list[str]) -> list[str]:
        """Of these names, those in a part, such as ``roi_heads.box_head``, that the model has."""
        parts = {name for name, _ in self.model.named_modules()}
        return [
            name
            for name in unexpected
            if name.count(".") >= 2
            and ".".join(name.split(".")[:2]) in parts
            and not name.endswith(OPTIONAL_BUFFERS)
        ]


class ShardedCheckpointer(StrictCheckpointer):
    """Saves and loads the files of an unsharded model. Every process must call ``save``."""

    def save(self, name: str, **kwargs) -> None:
        objects = {"model": self.model, **self.checkpointables}
        states = {key: full_state(obj.state_dict()) for key, obj in objects.items()}
        super().save(name, **states, **kwargs)

    def _model_state(self) -> dict:
        return full_state(self.model.state_dict())


def class_arguments(dataset_names: Sequence[str], transfer_from: str) -> dict:
    """``class_names`` and ``transfer`` of a :class:`StrictCheckpointer` for training.

    Args:
        dataset_names: the training datasets, which must have been read.
        transfer_from: as ``MODEL.TRANSFER_FROM``.

    Raises:
        ValueError: the datasets name no classes to map others to.
    """
    metadata = MetadataCatalog.get(dataset_names[0]) if dataset_names else None
    names = metadata and metadata.get("thing_classes")
    if not transfer_from:
        return {"class_names": names}
    if not names:
        raise ValueError(
            "MODEL.TRANSFER_FROM maps classes by name, and the training set names none: leave it "
            "empty."
        )
    transfer = ClassTransfer(transfer_from, names, metadata.get("class_frequency"))
    return {"class_names": names, "transfer": transfer}


def _first_misfit(shapes: dict, missing: list[str], surplus: list[str]) -> str:
    for name, (file_shape, model_shape) in shapes.items():
        others = f" (and {len(shapes) - 1} more differ)" if len(shapes) > 1 else ""
        return f"{name} has shape {file_shape} in the file, {model_shape} in the model{others}"
    if missing:
        few = ", ".join(missing[:3])
        return f"{len(missing)} of the model's parameters are not in the file, such as {few}"
    few = ", ".join(surplus[:3])
    return f"{len(surplus)} parameters of the file are not in the model, such as {few}"


def _grouped(names: list[str]) -> list[str]:
    """The names, one entry a module: ``rpn_head.conv.{bias, weight}``."""
    groups = defaultdict(list)
    for name in names:
        module, _, parameter = name.rpartition(".")
        groups[module].append(parameter)
    return [f"{module}.{{{', '.join(sorted(group))}}}" for module, group in sorted(groups.items())]
