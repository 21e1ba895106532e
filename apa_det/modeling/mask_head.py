"""A mask head with another activation and a threshold of one's own."""

from collections.abc import Callable

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import Instances
from torch import Tensor, nn

from ..layers import activation_from_config, get_activation

__all__ = ["APAMaskRCNNConvUpsampleHead"]

# The probability at which detectron2's postprocessing cuts masks.
_DETECTRON2_THRESHOLD = 0.5


@ROI_MASK_HEAD_REGISTRY.register()
class APAMaskRCNNConvUpsampleHead(MaskRCNNConvUpsampleHead):
    """detectron2's mask head with another activation and mask threshold."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        activation: str | Callable[[int], nn.Module] = "relu",
        mask_threshold: float = 0.5,
        **kwargs,
    ):
        """
        Args:
            input_shape: shape of the pooled RoI features.
            activation: of every layer; see :func:`apa_det.layers.get_activation`.
            mask_threshold: in (0, 1); pixels of at least this probability are in the mask.
            kwargs: as for :class:`detectron2.modeling.roi_heads.MaskRCNNConvUpsampleHead`.

        Raises:
            ValueError: a threshold out of bounds, or an unknown activation.
        """
        super().__init__(input_shape, **kwargs)
        if not 0 < mask_threshold < 1:
            raise ValueError(f"The mask threshold lies in (0, 1): {mask_threshold} does not.")
        self.mask_threshold = mask_threshold
        for conv in self.conv_norm_relus:
            conv.activation = get_activation(activation, conv.out_channels)
        self.deconv_relu = get_activation(activation, self.deconv.out_channels)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            "activation": activation_from_config(cfg, cfg.MODEL.ROI_MASK_HEAD.ACTIVATION),
            "mask_threshold": cfg.MODEL.ROI_MASK_HEAD.THRESHOLD,
        }

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """As in detectron2, but that in inference ``pred_masks`` holds the probabilities times
        0.5 / ``mask_threshold``: detectron2 pastes them linearly and cuts them at 0.5.
        """
        result = super().forward(x, instances)
        if not self.training and self.mask_threshold != _DETECTRON2_THRESHOLD:
            for predicted in result:
                scale = _DETECTRON2_THRESHOLD / self.mask_threshold
                predicted.pred_masks = predicted.pred_masks * scale
        return result
