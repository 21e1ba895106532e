"""Average the weights of several checkpoints."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..errors import UserError
from ..utils.progress import track
from .conversion import require_finite_floats
from .layouts import select_state
from .reading import load_checkpoint
from .transfer import stored_class_names


def average_checkpoints(
    paths: Sequence[str], weights: Sequence[float] | None = None, *, ema: bool = False
) -> dict:
    """Average the weights of checkpoints of one model, tensor by tensor.

    Meant for checkpoints from the end of one training run ("Averaging Weights Leads to Wider Optima
    and Better Generalization", Izmailov et al., UAI 2018), or from several runs with the same
    initialization ("Model soups", Wortsman et al., ICML 2022). Sums are accumulated in float64.
    Integer tensors, such as ``num_batches_tracked``, are copied from the last file.

    Batch norm statistics are averaged like the weights. This is exact if they are frozen and all
    files share them. Otherwise recompute them: train for zero more iterations with
    ``TEST.PRECISE_BN``.

    Args:
        paths: files in any format and layout that :func:`load_checkpoint` reads, with the same
            parameter names.
        weights: one weight >= 0 per file; they are divided by their sum. None: equal weights.
        ema: average the EMA weights (``SOLVER.EMA``) that each file stores beside its weights.

    Returns:
        A checkpoint with the averaged weights, and ``class_names`` if the files have them.

    Raises:
        UserError: a file is missing or damaged, has NaN or invalid class names, or its parameters
            or classes differ from those of the first file; or the weights are invalid.
    """
    shares = _shares(paths, weights)
    sums: dict[str, Tensor] = {}
    first, result = {}, {}
    for path, share in zip(track(paths, "Averaging", "files"), shares, strict=True):
        checkpoint = load_checkpoint(path)
        state = _read_state(path, checkpoint, ema)
        if not sums:
            first = {name: tensor.dtype for name, tensor in state.items()}
            result = {k: checkpoint[k] for k in _KEPT if k in checkpoint}
        else:
            _require_same_model(path, state, paths[0], sums)
            known = checkpoint.get("class_names"), result.get("class_names")
            if None not in known and known[0] != known[1]:
                raise UserError(
                    f"{path} and {paths[0]} have different class_names. Average checkpoints of the "
                    "same classes in the same order."
                )
        for name, tensor in state.items():
            if not first[name].is_floating_point:
                sums[name] = tensor
            elif name in sums:
                sums[name].add_(tensor.double(), alpha=share)
            else:
                sums[name] = tensor.double() * share
    model = {name: tensor.to(first[name]) for name, tensor in sums.items()}
    return {**result, "model": model, "__author__": f"apa_det, average of {len(paths)} files"}


_KEPT = ("class_names", "matching_heuristics")
_MISMATCH = "{}. Average checkpoints of the same model."


def _shares(paths: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    if not paths:
        raise UserError("No checkpoints to average. Name at least one.")
    if weights is None:
        return [1 / len(paths)] * len(paths)
    if len(weights) != len(paths):
        raise UserError(
            f"Got {len(weights)} weights for {len(paths)} checkpoints. Give one weight for each."
        )
    total = math.fsum(weights)
    if not all(weight >= 0 for weight in weights) or not 0 < total < math.inf:
        raise UserError(
            "Checkpoint weights must be finite and >= 0, and not all 0; got "
            f"{', '.join(map(str, weights))}."
        )
    return [weight / total for weight in weights]


def _read_state(path: str, checkpoint: dict, ema: bool) -> dict[str, Tensor]:
    try:
        if ema and isinstance(checkpoint.get("ema"), dict):
            state = select_state({"model": checkpoint["ema"]})
            state.pop("n_averaged", None)
        else:
            state = select_state(checkpoint, ema=ema)
        require_finite_floats(state, None)
        stored_class_names(checkpoint)
        return state
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _require_same_model(
    path: str, state: Mapping[str, Tensor], first_path: str, first: Mapping[str, Tensor]
) -> None:
    for name, tensor in first.items():
        if name not in state:
            raise UserError(_MISMATCH.format(f"{name} is in {first_path} but not in {path}"))
        if state[name].shape != tensor.shape:
            raise UserError(
                _MISMATCH.format(
                    f"{name} has shape {tuple(state[name].shape)} in {path}, but "
                    f"{tuple(tensor.shape)} in {first_path}"
                )
            )
    for name in state:
        if name not in first:
            raise UserError(_MISMATCH.format(f"{name} is in {path} but not in {first_path}"))
