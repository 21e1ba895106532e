"""Any meta-architecture, with APA injected."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ..injection import inject

__all__ = ["APAInjected", "meta_architecture"]


@META_ARCH_REGISTRY.register()
def APAInjected(cfg: CfgNode) -> nn.Module:
    """The model of another meta-architecture, into which :func:`apa_det.inject` puts APA.

    It is registered as a meta-architecture, so detectron2's ``build_model``, and all that calls it,
    builds it where ``MODEL.META_ARCHITECTURE`` is ``APAInjected``. The model is of the other's
    class.

    Args:
        cfg: ``MODEL.APA.INJECT`` says the meta-architecture and what is replaced; the ranges of
            initial values and the least λ are those of ``MODEL.APA``.

    Raises:
        ValueError: there is no such meta-architecture, or see :func:`apa_det.inject`.
    """
    settings, apa = cfg.MODEL.APA.INJECT, cfg.MODEL.APA
    name = settings.META_ARCHITECTURE
    if name == APAInjected.__name__ or name not in META_ARCH_REGISTRY:
        raise ValueError(
            f"MODEL.APA.INJECT.META_ARCHITECTURE is {name!r}: name the registered architecture "
            "that APA goes into, such as RetinaNet."
        )
    inner = cfg.clone()
    inner.defrost()
    inner.MODEL.META_ARCHITECTURE = name
    if cfg.is_frozen():
        inner.freeze()
    model = META_ARCH_REGISTRY.get(name)(inner)
    picture = torch.zeros(len(cfg.MODEL.PIXEL_MEAN), 256, 256)
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
            example=[{"image": picture}],
        )
    except ValueError as error:
        raise ValueError(f"MODEL.APA.INJECT: {error}") from error
    return model


def meta_architecture(cfg: CfgNode) -> str:
    """The meta-architecture of a config; of ``APAInjected``, the one that APA goes into."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.APA.INJECT.META_ARCHITECTURE if name == APAInjected.__name__ else name
