"""Injection of APA into any registered meta-architecture."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ..errors import UserError
from ..injection import inject


@META_ARCH_REGISTRY.register()
def APAInjected(cfg: CfgNode) -> nn.Module:
    """Build a model of another meta-architecture and put APA into it with :func:`apa_det.inject`.

    detectron2's ``build_model`` calls this if ``MODEL.META_ARCHITECTURE`` is ``APAInjected``. The
    model's class is that of the other meta-architecture.

    Args:
        cfg: ``MODEL.APA.INJECT`` has the meta-architecture and the layers to replace; initial
            ranges and the lower bound of λ come from ``MODEL.APA``.

    Raises:
        UserError: the meta-architecture is not registered, or :func:`apa_det.inject` fails.
    """
    settings, apa = cfg.MODEL.APA.INJECT, cfg.MODEL.APA
    name = settings.META_ARCHITECTURE
    if name == APAInjected.__name__ or name not in META_ARCH_REGISTRY:
        raise UserError(
            "MODEL.APA.INJECT.META_ARCHITECTURE must be a registered meta-architecture such as "
            f"RetinaNet; got {name!r}."
        )
    inner = cfg.clone()
    inner.defrost()
    inner.MODEL.META_ARCHITECTURE = name
    if cfg.is_frozen():
        inner.freeze()
    model = META_ARCH_REGISTRY.get(name)(inner)
    image = torch.zeros(len(cfg.MODEL.PIXEL_MEAN), 256, 256)
    try:
        inject(
            model,
            settings.NAMES,
            types=settings.TYPES or None,
            like=settings.LIKE or None,
            parameters=settings.PARAMETERS,
            lambda_range=apa.LAMBDA_RANGE,
            kappa_range=apa.KAPPA_RANGE,
            gate_lambda_range=apa.GATE_LAMBDA_RANGE,
            gate_kappa_range=apa.GATE_KAPPA_RANGE,
            lambda_min=apa.LAMBDA_MIN,
            example=[{"image": image}],
        )
    except ValueError as error:
        raise UserError(f"MODEL.APA.INJECT: {error}") from error
    return model


def meta_architecture(cfg: CfgNode) -> str:
    """Return the meta-architecture of a config; for ``APAInjected``, the one it injects into."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.APA.INJECT.META_ARCHITECTURE if name == APAInjected.__name__ else name
