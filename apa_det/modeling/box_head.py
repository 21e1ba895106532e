"""Box head with configurable activations and channel gates."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import nn

from ..errors import UserError
from ..layers import activation_from_config, gate_from_config, get_activation, get_gate
from ..layers.activations import Activation
from ..layers.gates import Gate

_GATES = {"none": (), "roi": ("roi",), "fc": ("fc",), "roi_fc": ("roi", "fc")}


@ROI_BOX_HEAD_REGISTRY.register()
class APAFastRCNNConvFCHead(FastRCNNConvFCHead):
    """detectron2's conv/FC box head with a configurable activation and channel gates."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        activation: Activation = "relu",
        roi_gate: Gate = None,
        fc_gate: Gate = None,
        init: str = "detectron2",
        **kwargs,
    ):
        """
        Args:
            activation: activation of every layer; see :func:`apa_det.layers.get_activation`.
            roi_gate: gate on the RoI features, after the convolutions and before the FCs; see
                :func:`apa_det.layers.get_gate`.
            fc_gate: gate on the output of the last FC.
            init: initialization of the FCs; see :func:`init_linear`.
            kwargs: ``conv_dims``, ``fc_dims`` and ``conv_norm`` of
                :class:`detectron2.modeling.roi_heads.FastRCNNConvFCHead`.

        Raises:
            UserError: ``fc_gate`` is set, but the head has no FCs; or ``init`` is unknown.
        """
        super().__init__(input_shape, **kwargs)
        for fc in self.fcs:
            init_linear(fc, init)
        channels = input_shape.channels
        for conv in self.conv_norm_relus:
            conv.activation = get_activation(activation, conv.out_channels)
            channels = conv.out_channels
        for k, fc in enumerate(self.fcs, start=1):
            setattr(self, f"fc_relu{k}", get_activation(activation, fc.out_features))

        layers = list(self.named_children())
        roi_gate_module = get_gate(roi_gate, channels)
        if roi_gate_module is not None:
            layers.insert(len(self.conv_norm_relus), ("roi_gate", roi_gate_module))
        if fc_gate is not None:
            if not self.fcs:
                raise UserError("MODEL.ROI_BOX_HEAD.GATE fc needs MODEL.ROI_BOX_HEAD.NUM_FC > 0.")
            layers.append(("fc_gate", get_gate(fc_gate, self.fcs[-1].out_features)))
        self._modules.clear()
        for name, layer in layers:
            self.add_module(name, layer)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        name = cfg.MODEL.ROI_BOX_HEAD.GATE
        if name not in _GATES:
            names = ", ".join(_GATES)
            raise UserError(f"MODEL.ROI_BOX_HEAD.GATE must be one of {names}; got {name!r}.")
        gate = gate_from_config(cfg, "se")
        return {
            **super().from_config(cfg, input_shape),
            "activation": activation_from_config(cfg, cfg.MODEL.ROI_BOX_HEAD.ACTIVATION),
            "roi_gate": gate if "roi" in _GATES[name] else None,
            "fc_gate": gate if "fc" in _GATES[name] else None,
            "init": cfg.MODEL.ROI_BOX_HEAD.INIT,
        }


def init_linear(layer: nn.Linear, init: str) -> None:
    """Initialize a linear layer of the box head, in place.

    Args:
        layer: the layer, with detectron2's initialization.
        init: "detectron2", which changes nothing; "xavier" (uniform, zero biases); or "torch", as
            :class:`torch.nn.Linear` does.

    Raises:
        UserError: ``init`` is unknown.
    """
    if init == "torch":
        layer.reset_parameters()
    elif init == "xavier":
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    elif init != "detectron2":
        raise UserError(
            f"MODEL.ROI_BOX_HEAD.INIT must be one of detectron2, xavier, torch; got {init!r}."
        )
