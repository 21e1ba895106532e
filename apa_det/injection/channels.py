"""Channels: how many an activation sees, and in which dimension."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ..activation import AGLU, APA
from .places import Place, put, put_back

__all__ = ["Channels", "ChannelsLastAGLU", "ChannelsLastAPA", "find_channels"]


class _ChannelsLast(APA):
    def parameters_for(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """λ, clamped, and κ in a shape that broadcasts along the last dimension of ``z``."""
        if z.shape[-1] != self.num_channels:
            raise ValueError(
                f"The activation has {self.num_channels} channels; its input has shape {z.shape}."
            )
        lambda_ = self.lambda_param.clamp(min=self.lambda_min)
        return lambda_.view([-1]), self.kappa_param.view([-1])


class ChannelsLastAPA(_ChannelsLast):
    """:class:`apa_det.APA` with one λ and κ for each channel, along the last dimension."""


class ChannelsLastAGLU(_ChannelsLast, AGLU):
    """:class:`apa_det.AGLU` with one λ and κ for each channel, along the last dimension."""


class Channels(NamedTuple):
    """The number of channels, and whether they are in the last dimension instead of the second."""

    count: int
    last: bool


class _Recorder(nn.Module):
    """Computes what was in its place, and notes the channels that it sees."""

    def __init__(self, place: Place, features: list[int | None]):
        super().__init__()
        self._compute = [place.function or torch.relu]  # a list, so that a module is no child
        self._features = features
        self.seen: set[Channels] = set()

    def forward(self, z: Tensor) -> Tensor:
        last = z.dim() > 2 and z.shape[-1] == self._features[0]
        self.seen.add(Channels(z.shape[-1 if last or z.dim() == 1 else 1], last))
        return self._compute[0](z)


def find_channels(model: nn.Module, places: Sequence[Place], example: object) -> list[Channels]:
    """Run a model once, and see the channels at each place.

    They are in the last dimension if the layer that ran before is a Linear or a LayerNorm of as
    many features, and the tensor has more than two dimensions; else in the second.

    Args:
        model: the model. It runs without gradients and in evaluation mode, and is left as it was.
        places: of that model.
        example: its input, or a tuple of several.

    Raises:
        ValueError: the model does not run on the example, or a place does not, or it sees different
            channels.
    """
    if example is None:
        raise ValueError("A pair for each channel needs an example, an input to see channels in.")
    features: list[int | None] = [None]  # of the last layer, if it is one of channels last

    def note(module: nn.Module, *_) -> None:
        if isinstance(module, nn.Linear):
            features[0] = module.out_features
        elif isinstance(module, nn.LayerNorm):
            features[0] = module.normalized_shape[-1]
        elif any(True for _ in module.parameters(recurse=False)):
            features[0] = None

    recorders = [_Recorder(place, features) for place in places]
    training = {module: module.training for module in model.modules()}
    hook = register_module_forward_hook(note)
    put(places, recorders, torch.empty(0))
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.eval()(*(example if isinstance(example, tuple) else (example,)))
    except Exception as error:
        raise ValueError(f"The example does not run through the model: {error}") from error
    finally:
        hook.remove()
        names = defaultdict(list)
        for place in places:
            names[place.owner].append(place.attribute)
        for owner, its_names in names.items():
            put_back(owner, its_names)
        for module, was_training in training.items():
            module.training = was_training
    return [_only(place, recorder.seen) for place, recorder in zip(places, recorders, strict=True)]


def _only(place: Place, seen: set[Channels]) -> Channels:
    if len(seen) == 1:
        return seen.pop()
    found = "did not run on the example" if not seen else f"saw {sorted(c.count for c in seen)}"
    raise ValueError(
        f"{place.name} {found}: its number of channels is not known. Leave it out by names, or "
        "have one λ and κ for all of its channels."
    )
