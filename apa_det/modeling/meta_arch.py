"""Models of configs, with injection of APA into any registered meta-architecture."""

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ..config.ignored_keys import warn_of_ignored_keys
from ..errors import UserError
from ..injection import inject


@META_ARCH_REGISTRY.register()
def APAInjected(cfg: CfgNode) -> nn.Module:
    """Build a model of another meta-architecture and put APA into it with :func:`apa_det.inject`.

    detectron2's ``build_model`` calls this if ``MODEL.META_ARCHITECTURE`` is ``APAInjected``. The
    model's class is that of the other meta-architecture. It is for code that cannot be changed to
    call :func:`build_model`, such as detectron2's ``DefaultPredictor``. Code that asks for
    ``MODEL.META_ARCHITECTURE`` sees ``APAInjected``: the trainers of PointRend and DeepLab then
    train a SemanticSegmentor without their augmentation, the demo of CenterNet2 does not set the
    score threshold of its detector, detectron2's ``upgrade_config`` does not rename the keys of an
    old RetinaNet config, and its Caffe2 export does not know the model.

    Args:
        cfg: ``MODEL.APA.INJECT`` has the meta-architecture and the layers to replace; initial
            ranges and the lower bound of λ come from ``MODEL.APA``.

    Raises:
        UserError: the meta-architecture is not registered, or :func:`apa_det.inject` fails.
    """
    name = cfg.MODEL.APA.INJECT.META_ARCHITECTURE
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
    _inject(cfg, model)
    return model


def build_model(cfg: CfgNode) -> nn.Module:
    """Build a model as detectron2's ``build_model``, and inject APA into it if the config says so.

    With ``MODEL.APA.INJECT.ENABLED``, :func:`apa_det.inject` puts APA into the model of
    ``MODEL.META_ARCHITECTURE``. That key stays as it is, for code that asks for its name.

    At the first step of the model's optimizer, a warning lists keys that were set but do not act.

    Args:
        cfg: a config with the keys of apa_det.

    Returns:
        The model on ``MODEL.DEVICE``, in training mode.

    Raises:
        UserError: :func:`apa_det.inject` fails.
    """
    model = modeling.build_model(cfg)
    if cfg.MODEL.APA.INJECT.ENABLED and cfg.MODEL.META_ARCHITECTURE != APAInjected.__name__:
        _inject(cfg, model)
    warn_of_ignored_keys(cfg, model)
    return model


def _inject(cfg: CfgNode, model: nn.Module) -> None:
    settings, apa = cfg.MODEL.APA.INJECT, cfg.MODEL.APA
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


def meta_architecture(cfg: CfgNode) -> str:
    """Return the meta-architecture of a config; for ``APAInjected``, the one it injects into."""
    name = cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.APA.INJECT.META_ARCHITECTURE if name == APAInjected.__name__ else name
