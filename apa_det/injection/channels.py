"""Channel counts of activations, and per-channel APA and AGLU for channels-last tensors."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ..activation import AGLU, APA
from ..errors import UserError
from .locations import Location, insert_modules, restore_attributes, share_modules


class _ChannelsLast(APA):
    channel_dim = -1

    def _parameters_for(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return λ and κ, shaped to broadcast along the last dimension of ``z``."""
        if z.shape[-1] != self.num_channels:
            raise ValueError(
                f"The activation has {self.num_channels} channels; its input has shape {z.shape}."
            )
        return self.lambda_param.view([-1]), self.kappa_param.view([-1])


class ChannelsLastAPA(_ChannelsLast):
    """:class:`apa_det.APA` with one λ and κ per channel of the last dimension."""


class ChannelsLastAGLU(_ChannelsLast, AGLU):
    """:class:`apa_det.AGLU` with one λ and κ per channel of the last dimension."""


class Channels(NamedTuple):
    """The number of channels, and whether the last dimension has them, not dimension 1."""

    count: int
    last: bool


class _Recorder(nn.Module):
    """Compute the activation at a location and record the channels of its inputs."""

    def __init__(self, location: Location, features: list[int | None]):
        super().__init__()
        self._compute = [location.function or torch.relu]  # a list: not a submodule
        self._features = features
        self.seen: set[Channels] = set()

    def forward(self, z: Tensor) -> Tensor:
        last = z.dim() > 2 and z.shape[-1] == self._features[0]
        self.seen.add(Channels(z.shape[-1 if last or z.dim() == 1 else 1], last))
        return self._compute[0](z)


def find_channels(
    model: nn.Module, locations: Sequence[Location], example: object
) -> list[Channels]:
    """Run a model once and return the channels at each location.

    The last dimension has the channels if the tensor has more than two dimensions and the previous
    layer is a Linear or LayerNorm with that many features. Otherwise dimension 1 has them. The
    model runs on ``example`` (an input or a tuple of inputs) in evaluation mode without gradients.

    Raises:
        UserError: if the model fails on the example, or a location does not run or gets different
            numbers of channels.
    """
    if example is None:
        raise UserError('parameters="per_channel" requires example, an input of the model.')
    features: list[int | None] = [None]  # of the previous layer, if channels-last

    def record_features(module: nn.Module, *_) -> None:
        if isinstance(module, nn.Linear):
            features[0] = module.out_features
        elif isinstance(module, nn.LayerNorm):
            features[0] = module.normalized_shape[-1]
        elif any(True for _ in module.parameters(recurse=False)):
            features[0] = None

    recorders = [_Recorder(location, features) for location in locations]
    recorders = share_modules(locations, recorders)
    training = {module: module.training for module in model.modules()}
    hook = register_module_forward_hook(record_features)
    insert_modules(locations, recorders, torch.empty(0))
    try:
        with torch.no_grad(), torch.random.fork_rng():
            model.eval()(*(example if isinstance(example, tuple) else (example,)))
    except Exception as error:
        raise UserError(f"The model fails on the example input: {error}") from error
    finally:
        hook.remove()
        names = defaultdict(list)
        for location in locations:
            names[location.owner].append(location.attribute)
        for owner, owner_names in names.items():
            restore_attributes(owner, owner_names)
        for module, was_training in training.items():
            module.training = was_training
    return [_unique(loc, recorder.seen) for loc, recorder in zip(locations, recorders, strict=True)]


def _unique(location: Location, seen: set[Channels]) -> Channels:
    if len(seen) == 1:
        return next(iter(seen))
    counts = ", ".join(str(channels.count) for channels in sorted(seen))
    problem = f"gets inputs with {counts} channels" if seen else "does not run on the example"
    raise UserError(
        f"Cannot determine the number of channels of {location.name}: it {problem}. Exclude it by "
        f'names ("!{location.name}"), or use parameters="shared".'
    )
