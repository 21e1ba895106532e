"""Checkpointers that report, or reject, what a file does not fill."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

from detectron2.data import MetadataCatalog
from torch import nn

from ..checkpoint import ClassTransfer, adapt, stored_class_names
from ..checkpoint.conversion import OPTIONAL_BUFFERS, describe_config, require_finite_floats
from ..checkpoint.download import download_checkpoint
from ..checkpoint.published import require_whole_gates
from ..errors import UserError
from ..text import listed
from .ema import averaged_state
from .freezing import matches, require_matches
from .job import Job
from .model_classes import read_checkpoint
from .parallel import full_state
from .saving import AtomicCheckpointer
from .training_state import load_state

logger = logging.getLogger(__name__)


class StrictCheckpointer(AtomicCheckpointer):
    """detectron2's checkpointer, with a strict mode in which a file must fill the whole model.

    Attributes:
        strict: raise a UserError if the file lacks a parameter of the model, has it in another
            shape, or has an unknown parameter in a part that the model has (whole additional heads
            are ignored). False: warn once, with a list of the parameters that keep their
            initialization, and raise a UserError only if the file fills no parameter.
        averaged: load the averaged weights of a file that has them (``SOLVER.EMA``).
        class_names: classes of the model, saved in every checkpoint as ``class_names``.
        transfer: copies class rows from a checkpoint of other classes by name; unused if
            ``strict``.
        reinitialized: name patterns of parameters not to load; unused if ``strict``.
        preloaded: contents of the file that is loaded next, if it has been read already.
        keys: config keys for messages, see ``Job.KEYS``. A missing one is replaced by its name.
        stored_class_names: the class names in the last file that was loaded; None if it has none.
        path: its path.
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
        keys: Mapping[str, str] | None = None,
        **kwargs,
    ):
        super().__init__(model, save_dir, **kwargs)
        self.strict = strict
        self.averaged = averaged
        self.class_names = class_names
        self.transfer = transfer
        self.reinitialized = reinitialized
        self.preloaded: dict | None = None
        self.keys = keys or {}
        self.stored_class_names: list[str] | None = None
        self.path = ""
        require_matches(self.model, reinitialized, self._key("reinitialized"))

    def _key(self, name: str) -> str:
        return self.keys.get(name, name)

    def save(self, name: str, **kwargs) -> None:
        if self.class_names is not None:
            kwargs = {"class_names": list(self.class_names), **kwargs}
        super().save(name, **kwargs)

    def load(self, path: str, checkpointables: Sequence[str] | None = None) -> dict:
        self._path = path
        if "://" in path:
            download_checkpoint(path)  # if it fails, detectron2's error lacks the URL
        rest = super().load(path, checkpointables=[])
        for name in self.checkpointables if checkpointables is None else checkpointables:
            if name in rest:
                load_state(self.checkpointables[name], rest.pop(name), path, name)
        return rest

    def _load_file(self, filename: str) -> dict:
        """Read every format of :func:`load_checkpoint`, without running code from the file."""
        checkpoint, self.preloaded = self.preloaded or read_checkpoint(filename), None
        self.path = filename
        query = parse_qs(self._parsed_url_during_load.query)
        if query.pop("matching_heuristics", ["False"]) == ["True"]:
            checkpoint["matching_heuristics"] = True
        if query:
            raise UserError(
                f"{self._path}: only matching_heuristics=True is supported after the question mark."
            )
        if self.averaged:
            has_average = isinstance(checkpoint.get("ema"), dict)
            if has_average:
                checkpoint["model"] = averaged_state(checkpoint["ema"])
            which = "averaged weights" if has_average else "weights, as it has no averaged ones"
            logger.info("%s: loading its %s (%s).", self._path, which, self._key("ema"))
        try:
            self.stored_class_names = stored_class_names(checkpoint)
            if self.strict:
                self._require_class_names()
            adapted = adapt(checkpoint, self.model)
            self._config = describe_config(adapted["model"])
            return adapted if self.strict else self._adapt_classes(checkpoint, adapted)
        except UserError as error:
            raise UserError(f"{self._path}: {error}") from error

    def _require_class_names(self) -> None:
        names, own = self.stored_class_names, self.class_names
        if None in (names, own) or len(names) != len(own) or names == list(own):
            return  # another number of classes is an error of the shapes
        i = next(i for i, (a, b) in enumerate(zip(names, own, strict=True)) if a != b)
        raise UserError(
            "it was trained with other classes than those of the training set, or in another order:"
            f" class {i} is {listed([names[i]])} in the file, {listed([own[i]])} in the data. "
            "--resume needs the same classes in the same order: restore the training set, or start "
            f"a new training from the file ({self._key('weights')}), without --resume."
        )

    def _convert_ndarray_to_tensor(self, state_dict: dict) -> None:
        """Check the weights under their final names, also those that heuristics have matched."""
        super()._convert_ndarray_to_tensor(state_dict)
        expected = self.model.state_dict()
        loaded = expected
        if not self.strict:
            loaded = {k: v for k, v in expected.items() if not matches(k, self.reinitialized)}
        try:
            require_finite_floats(state_dict, expected)
            require_whole_gates(state_dict, loaded)
        except UserError as error:
            raise UserError(f"{self._path}: {error}") from error

    def _adapt_classes(self, checkpoint: dict, adapted: dict) -> dict:
        """Copy class rows by name, and leave out the parameters to reinitialize."""
        state = {name.removeprefix("module."): t for name, t in adapted["model"].items()}
        known = stored_class_names(checkpoint)
        if self.transfer is not None:
            state = self.transfer(checkpoint, state, self._model_state())
        elif None in (known, self.class_names) or known == list(self.class_names):
            pass
        elif sorted(known) == sorted({*self.class_names}):
            logger.info("%s has the classes of the training set in another order.", self._path)
            transfer = ClassTransfer("checkpoint", self.class_names)
            try:
                state = transfer(checkpoint, state, self._model_state())
            except UserError as error:
                raise UserError(
                    "its classes are those of the training set in another order, but its class "
                    "scores were not found: use a training set with the classes in its order."
                ) from error
        else:
            logger.warning(
                "The classes of %s differ from those of the training set. Class rows are copied by "
                "position: set %s to checkpoint to copy them by name.",
                *(self._path, self._key("transfer_from")),
            )
        state = {k: v for k, v in state.items() if not matches(k, self.reinitialized)}
        return {**adapted, "model": state}

    def _model_state(self) -> dict:
        return self.model.state_dict()

    def _log_incompatible_keys(self, incompatible) -> None:
        missing = self._without_aliases(incompatible.missing_keys)
        shapes = {name: shapes for name, *shapes in incompatible.incorrect_shapes}
        unknown = self._within_model(incompatible.unexpected_keys)
        if self.strict and (shapes or missing or unknown):
            mismatch = _first_mismatch(shapes, missing, unknown)
            raise UserError(
                f"{self._path} does not fit the model: {mismatch}. --eval-only and --resume need a "
                "file that fills the whole model: use the config that it was trained with"
                f"{self._config}, with the same number of classes. To train other classes, start a "
                f"new training from it ({self._key('weights')}), without --resume."
            )
        names = dict(self.model.named_parameters())
        if names.keys() <= {*shapes, *incompatible.missing_keys}:
            raise UserError(
                f"{self._path} fills no parameter of the model: it has neither {next(iter(names))} "
                "nor any other in the same shape. Use a checkpoint of the same architecture."
            )
        if shapes or missing:
            lines = [
                f"{name} ({file_shape} in the file, {model_shape} in the model)"
                for name, (file_shape, model_shape) in shapes.items()
            ]
            logger.warning(
                "%s fills only part of the model. These parameters keep their initialization:"
                "\n  %s%s",
                *(self._path, "\n  ".join(lines + _grouped(missing))),
                f"\nThe config of the file{self._config}." if self._config else "",
            )
        statistics = [k for k in incompatible.missing_keys if ".class_loss." in k]
        if statistics:
            logger.info(
                "%s lacks running statistics of the class loss, which are reset: %s",
                *(self._path, ", ".join(_grouped(statistics))),
            )
        unexpected = [k for k in incompatible.unexpected_keys if not k.endswith(OPTIONAL_BUFFERS)]
        super()._log_incompatible_keys(
            incompatible._replace(missing_keys=[], incorrect_shapes=[], unexpected_keys=unexpected)
        )

    def _without_aliases(self, missing: list[str]) -> list[str]:
        """Drop parameters that the file has under another name, and optional buffers."""
        state = self.model.state_dict(keep_vars=True)
        filled = {id(state[name]) for name in state.keys() - set(missing)}
        return [
            k for k in missing if id(state[k]) not in filled and not k.endswith(OPTIONAL_BUFFERS)
        ]

    def _within_model(self, unexpected: list[str]) -> list[str]:
        """Return the names in parts that the model has, e.g. ``roi_heads.box_head``."""
        parts = {name for name, _ in self.model.named_modules()}
        return [
            name
            for name in unexpected
            if name.count(".") >= 2
            and ".".join(name.split(".")[:2]) in parts
            and not name.endswith(OPTIONAL_BUFFERS)
        ]


class ShardedCheckpointer(StrictCheckpointer):
    """Saves and loads a sharded model as an unsharded one. Every process must call ``save``."""

    def save(self, name: str, **kwargs) -> None:
        objects = {"model": self.model, **self.checkpointables}
        states = {key: full_state(obj.state_dict()) for key, obj in objects.items()}
        super().save(name, **states, **kwargs)

    def _model_state(self) -> dict:
        return full_state(self.model.state_dict())


def class_arguments(job: Job) -> dict:
    """Return ``class_names`` and ``transfer`` of a :class:`StrictCheckpointer` for training.

    Args:
        job: the job; its training sets have been read.

    Raises:
        UserError: the training set has no class names to transfer to.
    """
    metadata = MetadataCatalog.get(job.train_datasets[0]) if job.train_datasets else None
    names = metadata and metadata.get("thing_classes")
    if not job.transfer_from:
        return {"class_names": names}
    if not names:
        raise UserError(
            f"{job.KEYS['transfer_from']} matches classes by name, but the training set has no "
            "class names: leave it empty."
        )
    transfer = ClassTransfer(job.transfer_from, names, metadata.get("class_frequency"))
    return {"class_names": names, "transfer": transfer}


def _first_mismatch(shapes: dict, missing: list[str], unknown: list[str]) -> str:
    for name, (file_shape, model_shape) in shapes.items():
        others = f" (and {len(shapes) - 1} more differ)" if len(shapes) > 1 else ""
        return f"{name} has shape {file_shape} in the file, {model_shape} in the model{others}"
    if missing:
        few = ", ".join(missing[:3])
        return f"{len(missing)} of the model's parameters are not in the file, e.g. {few}"
    few = ", ".join(unknown[:3])
    return f"{len(unknown)} parameters of the file are not in the model, e.g. {few}"


def _grouped(names: list[str]) -> list[str]:
    """Return one entry per module, e.g. ``rpn_head.conv.{bias, weight}``."""
    groups = defaultdict(list)
    for name in names:
        module, _, parameter = name.rpartition(".")
        groups[module].append(parameter)
    return [f"{module}.{{{', '.join(sorted(group))}}}" for module, group in sorted(groups.items())]
