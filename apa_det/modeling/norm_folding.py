"""Norms folded into the convolutions before them: the form of a model for inference."""

import copy
import logging
from collections import Counter
from collections.abc import Iterator

import torchvision
from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import fx, nn

from ..layers import EvalBatchNorm2d, scale_and_shift

__all__ = ["fuse"]

logger = logging.getLogger(__name__)

# Exactly these: a subclass may do more in its forward pass.
_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    EvalBatchNorm2d,
    FrozenBatchNorm2d,
    NaiveSyncBatchNorm,
    torchvision.ops.FrozenBatchNorm2d,
)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2d)


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a model for inference, its norms folded into the layers before them.

    A batch norm on stored statistics is a scale and a shift for each channel, which the weights
    and the bias of the convolution or linear layer before it take up ("Quantization and Training of
    Neural Networks for Efficient Integer-Arithmetic-Only Inference", Jacob et al., CVPR 2018,
    section 3.2). Its outputs are the same but for rounding: in float32, features to some 1e-5 of
    their largest value.

    Folded are the batch norms of PyTorch, detectron2 (frozen, synchronised), torchvision (frozen)
    and :class:`apa_det.layers.EvalBatchNorm2d`: those of every ``detectron2.layers.Conv2d``, and
    those of modules of any origin that hand what one convolution or linear layer returns to the
    norm and to nothing else. Group and layer norms depend on the input, and stay; so do the norms
    of deformable convolutions.

    Args:
        model: any module in evaluation mode, such as a detectron2 detector or a backbone; it is
            left as it is.

    Returns:
        The copy. Its parameters take no gradient, and their names are those of the model without
        the norms: load checkpoints into the model before it is fused. On a CPU, convolutions are
        faster still after ``.to(memory_format=torch.channels_last)``.

    Raises:
        ValueError: the model, or a part of it, is in training mode.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        part = f", and its part {training} is not" if training else ""
        raise ValueError(
            f"fuse takes a model in evaluation mode{part}: call model.eval() first. In training "
            "the statistics of batch norms change."
        )
    model = copy.deepcopy(model).requires_grad_(False)
    uses = Counter(id(child) for module in model.modules() for child in module.children())
    count = 0
    for module in list(model.modules()):
        if type(module) is Conv2d and _is_foldable(module.norm):
            _fold(module, module.norm)
            module.norm = None
            count += 1
        for layer, name in list(_pairs(module)):
            norm = getattr(module, name)
            if uses[id(layer)] == uses[id(norm)] == 1 and _takes_up(layer, norm):
                _fold(layer, norm)
                setattr(module, name, nn.Identity())
                count += 1
    logger.info("Folded %d norms into the layers before them.", count)
    return model


def _is_foldable(norm: nn.Module | None) -> bool:
    return type(norm) in _NORMS and norm.running_mean is not None


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Layers among a module's children, each with the name of the norm that alone uses its result.

    How the children follow each other is found by a symbolic run of the module's forward pass.
    """
    children = dict(module.named_children())
    if not any(type(child) in _LAYERS for child in children.values()) or not any(
        _is_foldable(child) for child in children.values()
    ):
        return
    try:
        graph = _ChildTracer().trace(module)
    except Exception:  # whatever a forward pass that cannot run symbolically raises
        logger.debug("%s is not traced: its norms stay.", type(module).__name__, exc_info=True)
        return
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    for node in calls:
        if not _is_foldable(children.get(node.target)) or len(node.all_input_nodes) != 1:
            continue
        (source,) = node.all_input_nodes
        once = len(source.users) == times[node.target] == times[source.target] == 1
        if source.op == "call_module" and source.target in children and once:
            yield children[source.target], node.target


class _ChildTracer(fx.Tracer):
    """Records which children of a module are called on what, without a look into them."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return True


def _takes_up(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether the layer ends in a product with its weight, of whose channels the norm is."""
    if type(layer) is nn.Linear and type(norm) is not nn.BatchNorm1d:
        return False  # the norm is of dimension 1, and the layer's channels come last
    if type(layer) is Conv2d and (layer.norm is not None or layer.activation is not None):
        return False
    return type(layer) in _LAYERS and len(layer.weight) == len(norm.running_mean)


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """In double precision, and with a norm of its own: others may use the same."""
    scale, shift = scale_and_shift(copy.deepcopy(norm).cpu().double())
    weight = layer.weight.cpu().double() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    if layer.bias is not None:
        shift = shift + layer.bias.cpu().double() * scale
    layer.bias = nn.Parameter(shift.to(layer.weight), requires_grad=False)
    layer.weight = nn.Parameter(weight.to(layer.weight), requires_grad=False)
