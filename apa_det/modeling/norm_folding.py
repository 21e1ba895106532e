"""Fold norms into the preceding convolutions, for inference."""

import copy
import logging
from collections import Counter
from collections.abc import Iterator

import torchvision
from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import fx, nn

from ..layers import EvalBatchNorm2d, scale_and_shift

logger = logging.getLogger(__name__)

# Exactly these types: subclasses may do more in their forward pass.
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, EvalBatchNorm2d),
    *(FrozenBatchNorm2d, NaiveSyncBatchNorm, torchvision.ops.FrozenBatchNorm2d),
)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2d)


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy of a model for inference, with norms folded into the preceding layers.

    A batch norm on stored statistics scales and shifts each channel, so the weights and bias of
    the preceding convolution or linear layer can absorb it ("Quantization and Training of Neural
    Networks for Efficient Integer-Arithmetic-Only Inference", Jacob et al., CVPR 2018, section
    3.2). Outputs change by rounding only: in float32, features by about 1e-5 of their maximum.

    Supported are the batch norms of PyTorch, detectron2 (frozen, synchronized), torchvision
    (frozen) and :class:`apa_det.layers.EvalBatchNorm2d`: in every ``detectron2.layers.Conv2d``,
    and in any module that passes the output of a convolution or linear layer to the norm and to
    nothing else. Group and layer norms depend on the input and are kept, as are the norms of
    deformable convolutions.

    Args:
        model: any module in evaluation mode, such as a detectron2 detector or a backbone. It is
            not changed.

    Returns:
        The copy. Its parameters need no gradient and have the model's names, without those of the
        folded norms: load checkpoints before fusing. On a CPU,
        ``.to(memory_format=torch.channels_last)`` makes convolutions faster still.

    Raises:
        ValueError: the model, or a part of it, is in training mode.
    """
    for name, module in model.named_modules():
        if module.training:
            raise ValueError(
                "fuse needs a model in evaluation mode, but it is in training mode"
                f"{name and f' (module {name})'}. Call model.eval() first."
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
            if uses[id(layer)] == uses[id(norm)] == 1 and _can_fold(layer, norm):
                _fold(layer, norm)
                setattr(module, name, nn.Identity())
                count += 1
    logger.info("Folded %d norms into the preceding layers.", count)
    return model


def _is_foldable(norm: nn.Module | None) -> bool:
    return type(norm) in _NORMS and norm.running_mean is not None


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield each child layer and the name of the norm that is the only user of its output.

    The order of the children comes from a symbolic trace of the module's forward pass.
    """
    children = dict(module.named_children())
    if not any(type(child) in _LAYERS for child in children.values()) or not any(
        _is_foldable(child) for child in children.values()
    ):
        return
    try:
        graph = _ChildTracer().trace(module)
    except Exception:  # tracing can raise anything
        logger.debug("Cannot trace %s: its norms are kept.", type(module).__name__, exc_info=True)
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
    """Traces a module without tracing into its children."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return True


def _can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    """Return whether the layer's output is a product with its weight, with the norm's channels."""
    if type(layer) is nn.Linear and type(norm) is not nn.BatchNorm1d:
        return False  # its channels come last, and other norms work on dim 1
    if type(layer) is Conv2d and (layer.norm is not None or layer.activation is not None):
        return False
    return type(layer) in _LAYERS and len(layer.weight) == len(norm.running_mean)


def _fold(layer: nn.Module, norm: nn.Module) -> None:
    """Fold in double precision, with a copy of the norm, which other modules may share."""
    scale, shift = scale_and_shift(copy.deepcopy(norm).cpu().double())
    weight = layer.weight.cpu().double() * scale.view(-1, *[1] * (layer.weight.dim() - 1))
    if layer.bias is not None:
        shift = shift + layer.bias.cpu().double() * scale
    layer.bias = nn.Parameter(shift.to(layer.weight), requires_grad=False)
    layer.weight = nn.Parameter(weight.to(layer.weight), requires_grad=False)
