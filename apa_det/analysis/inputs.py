"""What goes into the gates, the activations and the class scores of a model: uniform samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..activation import AGLU, APA
from ..layers import Swish

__all__ = ["ACTIVATION", "CLASS_SCORE", "GATE", "InputSample", "InputSampler", "eta_parameters"]

GATE, ACTIVATION, CLASS_SCORE = "gate", "activation", "class score"

_GATES = (APA, nn.Sigmoid, nn.Hardsigmoid)
_ACTIVATIONS = (
    AGLU,
    Swish,
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.LeakyReLU,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
)


def eta_parameters(module: nn.Module) -> tuple[np.ndarray, np.ndarray] | None:
    """λ, as it is used, and κ of the η in a layer: shapes (1,), or (C,) with a pair per channel.

    Sigmoid and SiLU have λ = κ = 1, Swish λ = 1 and κ = β. None: there is no η in it.
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
    """A uniform sample, of bounded size, of the numbers that go into one layer.

    Every number gets a random key, and those with the smallest keys stay: so each of a stream is in
    the sample with the same probability, however long the stream (Vitter, "Random Sampling with a
    Reservoir", 1985). Where κ < 0 the sign of a number is changed, as η(z; λ, κ) = η(−z; λ, −κ):
    η rises with what is kept.

    Attributes:
        name: of the layer.
        kind: :data:`GATE`, :data:`ACTIVATION` or :data:`CLASS_SCORE`.
        layer: the name of its class, or of the class score.
        eta: its λ and κ, see :func:`eta_parameters`; None: it has none.
        group: of class scores, the place of the frequency group; else None.
        own_class: of class scores, whether the numbers are those of the proposals' own classes, or
            those of other classes; else None.
        seen: how many numbers there were.
        values: (S,) float32, the sample.
        channels: (S,) int64, the channel that each is of; 0 if λ and κ are not per channel.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        layer: str,
        eta: tuple[np.ndarray, np.ndarray] | None,
        *,
        size: int,
        rng: np.random.Generator,
        group: int | None = None,
        own_class: bool | None = None,
    ):
        self.name, self.kind, self.layer, self.eta = name, kind, layer, eta
        self.group, self.own_class = group, own_class
        self.seen = 0
        self.values = np.empty(0, np.float32)
        self.channels = np.empty(0, np.int64)
        self._keys = np.empty(0)
        self._size, self._rng, self._largest_key = size, rng, 1.0

    @property
    def mirrored(self) -> bool:
        """Whether the sign of all numbers was changed."""
        return self.eta is not None and bool((self.eta[1] < 0).all())

    def add(self, z: Tensor, channels: Tensor | None = None) -> None:
        """
        Args:
            z: floating-point numbers of any shape.
            channels: the channel of each number, of the same shape. None: dimension 1 of z has the
                channels.
        """
        self.seen += z.numel()
        number = self._rng.binomial(z.numel(), self._largest_key)
        new_keys = _smallest(self._rng.uniform(0, self._largest_key, number), self._size)
        number = len(new_keys)
        places = self._rng.choice(z.numel(), number, replace=False, shuffle=False)
        index = torch.from_numpy(places).to(z.device)
        values = z.detach().take(index).float().cpu().numpy()
        if self.eta is None or len(self.eta[1]) == 1:
            channel = np.zeros(number, np.int64)
        elif channels is None:
            channel = places // max(z[0, 0].numel(), 1) % z.shape[1]
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
    """Samples what goes into every gate and activation of a model that is a module.

    Functions that a forward pass calls, such as ``F.relu``, are not seen. What
    :mod:`apa_det.layers.fused` runs in one pass is run one by one meanwhile.

    Args:
        model: any module.
        size: of each sample, at most.
        seed: of the choice.
    """

    model: nn.Module
    size: int = 100_000
    seed: int = 0

    def __post_init__(self):
        self._rng = np.random.default_rng(self.seed)
        self._samples: dict[str, InputSample] = {}

    @property
    def samples(self) -> list[InputSample]:
        """One for each layer that has run, in the order in which they ran first."""
        return list(self._samples.values())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, what goes into the layers is sampled."""
        handles = [
            module.register_forward_pre_hook(self._hook(name, module))
            for name, module in self.model.named_modules()
            if isinstance(module, _GATES + _ACTIVATIONS)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def sample(self, name: str, kind: str, layer: str, eta, **of_class_scores) -> InputSample:
        """The sample of this name, group and own class; a new one if there is none."""
        key = " ".join(map(str, (name, *of_class_scores.values())))
        if key not in self._samples:
            self._samples[key] = InputSample(
                *(name, kind, layer, eta), size=self.size, rng=self._rng, **of_class_scores
            )
        return self._samples[key]

    def _hook(self, name: str, module: nn.Module):
        kind = ACTIVATION if isinstance(module, _ACTIVATIONS) else GATE

        def hook(_, args: tuple[Tensor, ...]) -> None:
            if args[0].numel():
                self.sample(name, kind, type(module).__name__, eta_parameters(module)).add(args[0])

        return hook


def _smallest(keys: np.ndarray, number: int) -> np.ndarray:
    return keys if len(keys) <= number else np.partition(keys, number - 1)[:number]


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().double().flatten().cpu().numpy()
