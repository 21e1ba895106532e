"""Class scores and post-processing in LazyConfigs: the nodes of box predictors and detectors."""

import copy
from collections.abc import Iterator, Mapping

from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from ...errors import UserError
from ...modeling import CALIBRATION_REGISTRY, APAFastRCNNOutputLayers, PostProcessing
from ...modeling.dense import DenseClassScores
from ...modeling.postprocessing import ARGUMENTS
from .config_files import call_target

MODELS = ("model", "model.model")  # plain, or the argument of L(apa_det.modeling.injected)


def box_predictors(cfg: DictConfig) -> list[str]:
    """Return the config keys of the box predictors: one per stage of a cascade."""
    keys = []
    for model in MODELS:
        heads = f"{model}.roi_heads"
        number = len(OmegaConf.select(cfg, f"{heads}.box_predictors") or ())
        keys += [f"{heads}.box_predictors.{i}" for i in range(number)]
        if OmegaConf.select(cfg, f"{heads}.box_predictor") is not None:
            keys.append(f"{heads}.box_predictor")
    return keys


def without_federated_loss(cfg: DictConfig) -> DictConfig:
    """Return a copy of a config without the federated loss, which reads the training set."""
    cfg = copy.deepcopy(cfg)
    for key in box_predictors(cfg):
        predictor = OmegaConf.select(cfg, key)
        if predictor.get("use_fed_loss"):
            predictor.update(use_fed_loss=False, get_fed_loss_cls_weights=None)
    return cfg


def score_nodes(cfg: DictConfig) -> list[str]:
    """Return the config keys of all nodes that take calibrations and post-processing."""
    keys = []
    for key in (*box_predictors(cfg), *MODELS):
        node = OmegaConf.select(cfg, key)
        target = call_target(node) if isinstance(node, DictConfig) and "_target_" in node else None
        if isinstance(target, type) and issubclass(
            target, APAFastRCNNOutputLayers | DenseClassScores
        ):
            keys.append(key)
    return keys


def calibrations(cfg: DictConfig) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each calibration, "" for none, and its datasets."""
    for key in score_nodes(cfg):
        node = OmegaConf.select(cfg, key)
        names = node.get("calibration_datasets") or ()
        yield node.get("calibration") or "", [names] if isinstance(names, str) else list(names)


def read_class_values(cfg: DictConfig) -> None:
    """Read what the calibrations need of the training sets.

    Raises:
        UserError: a training set does not provide it.
    """
    for method, names in calibrations(cfg):
        if method in CALIBRATION_REGISTRY and CALIBRATION_REGISTRY.get(method).needs_counts:
            CALIBRATION_REGISTRY.get(method).class_values(names)


def postprocessings(cfg: DictConfig) -> list[PostProcessing]:
    """Return the post-processing of each node.

    Raises:
        UserError: a value is not valid.
    """
    result = []
    for key in score_nodes(cfg):
        node = OmegaConf.select(cfg, key)
        number = node.get("num_classes")
        if isinstance(number, int):
            values = {name: instantiate(node[name]) for name in ARGUMENTS if name in node}
            result.append(PostProcessing(number, **values))
    return result


def check_test_augmentation(cfg: DictConfig) -> None:
    """Raise a UserError for post-processing that test-time augmentation does not do."""
    if not OmegaConf.select(cfg, "train.test_augmentation.enabled"):
        return
    for key in (*score_nodes(cfg), *(f"{model}.roi_heads" for model in MODELS)):
        for name in ("soft_nms", "class_agnostic_nms", "mask_score"):
            if OmegaConf.select(cfg, f"{key}.{name}"):
                raise UserError(
                    f"{key}.{name} does not work with train.test_augmentation, which has its own "
                    "NMS: set train.test_augmentation.enabled=False."
                )


def threshold_settings(cfg: DictConfig, datasets: list[str], thresholds: str) -> dict[str, object]:
    """Return the arguments of a node that set score thresholds; "" for none."""
    if not thresholds:
        return {"score_thresh_per_group": ""}
    settings = {"score_thresh_per_group": thresholds, "score_thresh_datasets": datasets}
    evaluator = cfg.dataloader.get("evaluator") or {}
    if evaluator.get("groups") is not None:
        settings["score_thresh_groups"] = "${dataloader.evaluator.groups}"
    if evaluator.get("count_from"):
        settings["score_thresh_count_from"] = evaluator.count_from
    return settings


def score_overrides(cfg: DictConfig, values: Mapping[str, object]) -> list[str]:
    """Return overrides that set arguments of all nodes, one line for each node."""
    texts = {
        name: f"[{','.join(value)}]" if isinstance(value, list) else f"{value}"
        for name, value in values.items()
    }
    return [
        " ".join(f"{key}.{name}={quoted(text)}" for name, text in texts.items())
        for key in score_nodes(cfg)
    ]


def quoted(text: str) -> str:
    """Return a value as Hydra and a shell read it."""
    return f"\"'{text}'\"" if any(c in text for c in ":${}") else text
