"""Load the state of a training from a checkpoint, after a check that it fits."""

import math
from collections.abc import Iterator, Mapping

from torch import Tensor
from torch.optim import Optimizer

from ..errors import UserError
from ..text import printable

_INTEGERS = ("iteration", "last_epoch")


def load_state(target: object, state: object, path: str, part: str) -> None:
    """Load a part of a checkpoint into an object, by its ``load_state_dict``.

    Args:
        target: has ``state_dict`` and ``load_state_dict``, and may have an ``optimizer``.
        state: the part of the checkpoint.
        path: the file, for errors.
        part: the name of the part, for errors.

    Raises:
        UserError: the state is not that of such an object, has NaN or infinite values, or has a
            tensor of another shape.
    """
    try:
        problem = next(mismatches(target.state_dict(), state, part), None)
        optimizer = getattr(target, "optimizer", None)
        if problem is None and isinstance(optimizer, Optimizer):
            own = state.get("_trainer", state)
            problem = next(optimizer_mismatches(optimizer, own["optimizer"]), None)
        if problem is None:
            target.load_state_dict(state)
            return
    except UserError:
        raise
    except Exception as error:  # what a wrong state raises depends on the object
        text = " ".join(str(error).split()) or type(error).__name__
        problem = f"{part}: {f'missing entry {text}' if isinstance(error, KeyError) else text}"
    raise UserError(
        f"{path} does not fit the training: {printable(problem, 400)}. Resume with the config of "
        "that training, or start a new training from the file as weights, without --resume."
    )


def optimizer_mismatches(optimizer: Optimizer, state: Mapping) -> Iterator[str]:
    """Yield what does not fit in the state of each parameter, e.g. its momentum."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    keys = [key for group in state["param_groups"] for key in group["params"]]
    known = dict(zip(keys, parameters, strict=True))
    for key, values in state["state"].items():
        if key not in known:
            yield f"optimizer: unknown parameter {key}"
            return
        for name, value in values.items():
            where = f"optimizer: {name} of parameter {key}"
            if isinstance(value, Tensor):
                if value.numel() != 1 and value.shape != known[key].shape:
                    yield _shape(where, value, known[key].shape)
                elif value.is_complex() or not value.isfinite().all():
                    yield f"{where} has NaN, infinite or complex values"
            elif value is not None and not _is_finite(value):
                yield f"{where} must be a tensor or a number, got {printable(value)}"


def mismatches(own: object, state: object, where: str) -> Iterator[str]:
    """Yield what in a state is of another kind than in an object's own state.

    Entries that only one of them has are left to the object.
    """
    if isinstance(own, Mapping):
        if not isinstance(state, Mapping):
            yield f"{where} must be a dict, got {_shown(state)}"
            return
        for key in own:
            if key in state:
                yield from mismatches(own[key], state[key], f"{where}.{key}")
    elif isinstance(own, list | tuple):
        grown = not own and isinstance(state, list)  # a history, which is empty at the start
        if not (isinstance(state, list | tuple) and (grown or len(own) == len(state))):
            yield f"{where} must be a list of {len(own)}, got {_shown(state)}"
            return
        for i, (item, other) in enumerate(zip(own, state, strict=not grown)):
            yield from mismatches(item, other, f"{where}[{i}]")
    elif isinstance(own, Tensor):
        if not isinstance(state, Tensor):
            yield f"{where} must be a tensor, got {_shown(state)}"
        elif own.shape != state.shape:
            yield _shape(where, state, own.shape)
        elif own.is_floating_point() != state.is_floating_point() or state.is_complex():
            yield f"{where} is of {state.dtype}, but that of the training is of {own.dtype}"
        elif own.is_floating_point() and not state.isfinite().all():
            yield f"{where} has NaN or infinite values"
    elif isinstance(own, bool):
        if not isinstance(state, bool):
            yield f"{where} must be True or False, got {_shown(state)}"
    elif isinstance(own, int | float):
        if where.endswith(_INTEGERS):
            if type(state) is not int or state < 0:
                yield f"{where} must be an integer >= 0, got {_shown(state)}"
        elif not _is_finite(state):
            yield f"{where} must be a number, got {_shown(state)}"


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shape(where: str, value: Tensor, expected: tuple) -> str:
    return f"{where} has shape {tuple(value.shape)}, but {tuple(expected)} in the training"


def _shown(value: object) -> str:
    if isinstance(value, Mapping | list | tuple | Tensor):
        size = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        return f"a {type(value).__name__}{size or f' of {len(value)}'}"
    return printable(repr(value))
