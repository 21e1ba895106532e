"""The average of several checkpoints' weights."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor
from tqdm import tqdm

from .layouts import select_state
from .reading import load_checkpoint

__all__ = ["average_checkpoints"]


def average_checkpoints(
    paths: Sequence[str], weights: Sequence[float] | None = None, *, averaged: bool = False
) -> dict:
    """Average the weights of checkpoints of one model, tensor by tensor.

    Checkpoints of the end of one training ("Averaging Weights Leads to Wider Optima and Better
    Generalization", Izmailov et al., UAI 2018), or of several trainings from the same start ("Model
    soups", Wortsman et al., ICML 2022). The sums are float64. Tensors of integers, such as
    ``num_batches_tracked``, are the last file's.

    The statistics of batch norms are averaged as the weights are, and are then not quite those of
    the averaged model. That is exact for frozen ones that all files share; trained ones can be
    computed anew by training no iteration more with ``TEST.PRECISE_BN``.

    Args:
        paths: files in any format and layout of :func:`load_checkpoint`, with the same names.
        weights: of the files, at least 0; they are divided by their sum. None: all the same.
        averaged: take the moving averages that each file has beside its weights (``SOLVER.EMA``).

    Returns:
        A checkpoint of the averaged weights, with ``class_names`` where the files have them.

    Raises:
        FileNotFoundError, ValueError: a file is missing or broken, or is not of the same model and
            classes as the first; or the weights are not right.
    """
    shares = _shares(paths, weights)
    sums: dict[str, Tensor] = {}
    first, result = {}, {}
    for path, share in zip(tqdm(paths, desc="averaging", unit="file"), shares, strict=True):
        checkpoint = load_checkpoint(path)
        state = _state_of(path, checkpoint, averaged)
        if not sums:
            first = {name: tensor.dtype for name, tensor in state.items()}
            result = {k: checkpoint[k] for k in _KEPT if k in checkpoint}
        else:
            _require_same_model(path, state, paths[0], sums)
            known = checkpoint.get("class_names"), result.get("class_names")
            if None not in known and known[0] != known[1]:
                raise ValueError(
                    f"{path} is of other classes than {paths[0]}, by their class_names: average "
                    "checkpoints of the same classes, in the same order."
                )
        for name, tensor in state.items():
            if not first[name].is_floating_point:
                sums[name] = tensor
            elif name in sums:
                sums[name].add_(tensor.double(), alpha=share)
            else:
                sums[name] = tensor.double() * share
    model = {name: tensor.to(first[name]) for name, tensor in sums.items()}
    return {**result, "model": model, "__author__": f"apa_det, an average of {len(paths)} files"}


_KEPT = ("class_names", "matching_heuristics")


def _shares(paths: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if not paths:
        raise ValueError("There is no checkpoint to average: name some.")
    if weights is None:
        return [1 / len(paths)] * len(paths)
    if len(weights) != len(paths):
        raise ValueError(f"There are {len(paths)} checkpoints and {len(weights)} weights of them.")
    total = math.fsum(weights)
    if not all(weight >= 0 for weight in weights) or not 0 < total < math.inf:
        raise ValueError(
            "The weights of the checkpoints are finite numbers of at least 0, not all 0, and not "
            f"{', '.join(map(str, weights))}."
        )
    return [weight / total for weight in weights]


def _state_of(path: str, checkpoint: dict, averaged: bool) -> dict[str, Tensor]:
    try:
        if not averaged:
            return select_state(checkpoint)
        if not isinstance(checkpoint.get("ema"), dict):
            return select_state(checkpoint, ema=True)
        state = select_state({"model": checkpoint["ema"]})
        return {name: tensor for name, tensor in state.items() if name != "n_averaged"}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _require_same_model(
    path: str, state: Mapping[str, Tensor], first_path: str, first: Mapping[str, Tensor]
) -> None:
    for name, tensor in first.items():
        if name not in state:
            raise ValueError(f"{path} lacks {name}, which {first_path} has.")
        if state[name].shape != tensor.shape:
            raise ValueError(
                f"{path} has {name} of shape {tuple(state[name].shape)}, and {first_path} of shape "
                f"{tuple(tensor.shape)}."
            )
    for name in state:
        if name not in first:
            raise ValueError(f"{path} has {name}, which {first_path} lacks.")
