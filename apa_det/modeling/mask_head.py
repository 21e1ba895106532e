"""Mask head with configurable activation, upsampling, predictor and mask threshold."""

from collections.abc import Callable
from typing import List  # noqa: UP035

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Instances
from torch import Tensor, nn

from ..errors import UserError
from ..layers import CARAFE, NormedConv2d, activation_from_config, get_activation


@ROI_MASK_HEAD_REGISTRY.register()
class APAMaskRCNNConvUpsampleHead(MaskRCNNConvUpsampleHead):
    """detectron2's mask head with configurable activation, upsampling, predictor and threshold."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        activation: str | Callable[[int], nn.Module] = "relu",
        upsample: str = "deconv",
        predictor: str = "conv",
        predictor_temperature: float = 20.0,
        predictor_learn_temperature: bool = False,
        mask_threshold: float = 0.5,
        **kwargs,
    ):
        """
        Args:
            activation: activation of every layer; see :func:`apa_det.layers.get_activation`.
            upsample: "deconv", followed by an activation, or "carafe", without activation.
            predictor: "conv", or "normed" for :class:`apa_det.layers.NormedConv2d`.
            predictor_temperature, predictor_learn_temperature: only for the normed predictor.
            mask_threshold: a pixel with at least this probability is in the mask; in (0, 1).
            kwargs: those of :class:`detectron2.modeling.roi_heads.MaskRCNNConvUpsampleHead`.

        Raises:
            UserError: an argument is out of range, or a name is unknown.
        """
        super().__init__(input_shape, **kwargs)
        if not 0 < mask_threshold < 1:
            key = "MODEL.ROI_MASK_HEAD.THRESHOLD"
            raise UserError(f"{key} must be in (0, 1), got {mask_threshold}.")
        for key, name, choices in (
            ("UPSAMPLE", upsample, ("deconv", "carafe")),
            ("PREDICTOR", predictor, ("conv", "normed")),
        ):
            if name not in choices:
                key, known = f"MODEL.ROI_MASK_HEAD.{key}", " or ".join(choices)
                raise UserError(f"{key} must be {known}, got {name!r}.")
        self.mask_threshold = mask_threshold
        for conv in self.conv_norm_relus:
            conv.activation = get_activation(activation, conv.out_channels)
        if upsample == "carafe":
            self._replace_deconv()
        else:
            self.deconv_relu = get_activation(activation, self.deconv.out_channels)
        if predictor == "normed":
            self.predictor = NormedConv2d(
                self.predictor.in_channels,
                self.predictor.out_channels,
                kernel_size=1,
                temperature=predictor_temperature,
                learn_temperature=predictor_learn_temperature,
            )
            weight_init.c2_msra_fill(self.predictor)

    def _replace_deconv(self) -> None:
        if self.deconv.in_channels != self.deconv.out_channels:
            raise UserError(
                "MODEL.ROI_MASK_HEAD.UPSAMPLE carafe keeps the number of channels. With NUM_CONV "
                f"0, set CONV_DIM to the {self.deconv.in_channels} input channels, not "
                f"{self.deconv.out_channels}."
            )
        predictor = self.predictor
        del self.deconv, self.deconv_relu, self.predictor
        self.upsample = CARAFE(predictor.in_channels)
        self.predictor = predictor  # nn.Sequential runs its modules in insertion order

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "activation": activation_from_config(cfg, head.ACTIVATION),
            "upsample": head.UPSAMPLE,
            "predictor": head.PREDICTOR,
            "predictor_temperature": head.PREDICTOR_TEMPERATURE,
            "predictor_learn_temperature": head.PREDICTOR_LEARN_TEMPERATURE,
            "mask_threshold": head.THRESHOLD,
        }

    def forward(self, x: Tensor, instances: List[Instances]):  # noqa: UP006
        """As in detectron2, but scale ``pred_masks`` by 0.5 / ``mask_threshold`` in inference.

        detectron2 resizes the mask probabilities linearly and thresholds them at 0.5, so this
        applies ``mask_threshold``.
        """
        x = self.layers(x)
        if self.training:
            return {"loss_mask": mask_rcnn_loss(x, instances, self.vis_period) * self.loss_weight}
        mask_rcnn_inference(x, instances)
        if self.mask_threshold != 0.5:
            for predicted in instances:
                predicted.pred_masks = predicted.pred_masks * (0.5 / self.mask_threshold)
        return instances
