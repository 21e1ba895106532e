"""Uniform samples of the inputs of a model's gates, activations and class scores."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..activation import AGLU, APA
from ..layers import Swish

GATE = "gate"
ACTIVATION = "activation"
CLASS_SCORE = "class score"

_GATES = (APA, nn.Sigmoid, nn.Hardsigmoid)
_ACTIVATIONS = (
    *(AGLU, Swish, nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.PReLU),
    *(nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU),
)


def eta_parameters(module: nn.Module) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the effective (clamped) λ and κ of a layer, of shape (1,), or (C,) if per channel.

    Sigmoid and SiLU have λ = κ = 1, Swish λ = 1 and κ = β. None: the layer has no η.
    """
    if isinstance(module, APA):
        lambda_ = module.lambda_param.detach().clamp(min=module.lambda_min)
        return _array(lambda_), _array(module.kappa_param)
    if isinstance(module, Swish):
        kappa = _array(module.beta)
        return np.ones_like(kappa), kappa
    if isinstance(module, (nn.Sigmoid, nn.SiLU)):
        return np.ones(1), np.ones(1)
    return None


class InputSample:
    """A uniform sample of bounded size of one layer's input values (reservoir sampling).

    Each value gets a random key, and the values with the smallest keys are kept. So all values of a
    stream of any length have the same probability of being in the sample (Vitter, "Random Sampling
    with a Reservoir", 1985). Values of channels with κ < 0 are negated: η(z; λ, κ) = η(−z; λ, −κ),
    so η is increasing in all sampled values.

    Attributes:
        name: module name of the layer.
        kind: :data:`GATE`, :data:`ACTIVATION` or :data:`CLASS_SCORE`.
        layer_type: class name of the layer, or name of the class score.
        eta: λ and κ, see :func:`eta_parameters`. None: no η.
        group: for class scores, the index of the frequency group; otherwise None.
        gt_class: for class scores, True for the logits of the proposals' ground-truth classes,
            False for those of all other classes; otherwise None.
        seen: number of input values so far.
        values: (S,) float32, the sample.
        channels: (S,) int64, channel of each value; 0 if λ and κ are not per channel.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        layer_type: str,
        eta: tuple[np.ndarray, np.ndarray] | None,
        *,
        size: int,
        rng: np.random.Generator,
        group: int | None = None,
        gt_class: bool | None = None,
    ):
        self.name, self.kind, self.layer_type, self.eta = name, kind, layer_type, eta
        self.group, self.gt_class = group, gt_class
        self.seen, self._keys = 0, np.empty(0)
        self.values, self.channels = np.empty(0, np.float32), np.empty(0, np.int64)
        self._size, self._rng, self._largest_key = size, rng, 1.0

    @property
    def mirrored(self) -> bool:
        """Whether all values were negated."""
        return self.eta is not None and bool((self.eta[1] < 0).all())

    def add(self, z: Tensor, channels: Tensor | None = None, channel_dim: int = 1) -> None:
        """Add input values.

        Args:
            z: floating-point tensor of any shape.
            channels: channel of each value, of the same shape. None: ``channel_dim`` of z.
            channel_dim: the dimension of the channels.
        """
        self.seen += z.numel()
        number = self._rng.binomial(z.numel(), self._largest_key)
        new_keys = _smallest(self._rng.uniform(0, self._largest_key, number), self._size)
        number = len(new_keys)
        indices = self._rng.choice(z.numel(), number, replace=False, shuffle=False)
        index = torch.from_numpy(indices).to(z.device)
        values = z.detach().take(index).float().cpu().numpy()
        if self.eta is None or len(self.eta[1]) == 1:
            channel = np.zeros(number, np.int64)
        elif channels is None:
            dim = channel_dim % z.dim()
            channel = indices // max(math.prod(z.shape[dim + 1 :]), 1) % z.shape[dim]
        else:
            channel = channels.take(index).cpu().numpy()
        if self.eta is not None:
            values = values * np.where(self.eta[1][channel] < 0, -1, 1).astype(np.float32)
        finite = np.isfinite(values)
        keys = np.concatenate([self._keys, new_keys[finite]])
        values = np.concatenate([self.values, values[finite]])
        channel = np.concatenate([self.channels, channel[finite]])
        if len(keys) > self._size:
            kept = np.argpartition(keys, self._size - 1)[: self._size]
            keys, values, channel = keys[kept], values[kept], channel[kept]
            self._largest_key = keys.max()
        self._keys, self.values, self.channels = keys, values, channel


@dataclass
class InputSampler:
    """Samples the inputs of every gate and activation module of a model.

    Functions called in a forward pass (``F.relu``) are not seen. While sampling,
    :mod:`apa_det.layers.fused` does not fuse the modules.
    """

    model: nn.Module
    size: int = 100_000  # maximum number of values per sample
    seed: int = 0

    def __post_init__(self):
        self._rng = np.random.default_rng(self.seed)
        self._samples: dict[str, InputSample] = {}

    @property
    def samples(self) -> list[InputSample]:
        """The samples of all layers that ran, in order of their first call."""
        return list(self._samples.values())

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample the layers' inputs in all forward passes inside this context."""
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if isinstance(module, _GATES + _ACTIVATIONS):
                    handle = module.register_forward_pre_hook(self._hook(name, module))
                    stack.callback(handle.remove)
            yield

    def sample(self, name: str, kind: str, layer_type: str, eta, **class_score) -> InputSample:
        """Return the sample of this name, ``group`` and ``gt_class``; create it if missing."""
        key = " ".join(map(str, (name, *class_score.values())))
        if key not in self._samples:
            self._samples[key] = InputSample(
                *(name, kind, layer_type, eta), size=self.size, rng=self._rng, **class_score
            )
        return self._samples[key]

    def _hook(self, name: str, module: nn.Module):
        kind = ACTIVATION if isinstance(module, _ACTIVATIONS) else GATE
        dim = module.channel_dim if isinstance(module, APA) else 1

        def hook(_, args: tuple[Tensor, ...]) -> None:
            if args[0].numel():
                sample = self.sample(name, kind, type(module).__name__, eta_parameters(module))
                sample.add(args[0], channel_dim=dim)

        return hook


def _smallest(keys: np.ndarray, number: int) -> np.ndarray:
    return keys if len(keys) <= number else np.partition(keys, number - 1)[:number]


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().double().flatten().cpu().numpy()
