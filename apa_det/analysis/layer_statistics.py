"""Analysis of a model: the distributions that fit its layers' inputs."""

import logging
import math
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from tabulate import tabulate
from torch import nn

from ..data.frequency import FrequencyGroups
from ..utils.progress import track
from .class_scores import has_roi_class_scores, sample_dense_class_scores, sample_roi_class_scores
from .distributions import GeneralizedLogistic, fit
from .inputs import InputSample, InputSampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """A layer's sampled inputs and their fitted distributions.

    Attributes:
        inputs: the sample.
        logistic, gumbel: maximum-likelihood fits. None: fewer than two distinct inputs.
    """

    inputs: InputSample
    logistic: GeneralizedLogistic | None
    gumbel: GeneralizedLogistic | None

    @classmethod
    def of(cls, inputs: InputSample) -> "Layer":
        return cls(inputs, fit(inputs.values, 1.0), fit(inputs.values, 0.0))

    @property
    def learned(self) -> GeneralizedLogistic | None:
        """η as a distribution, with the λ and κ of each sampled value's channel.

        None: the layer has no η, or a κ is 0 and η is constant.
        """
        if self.inputs.eta is None or not np.all(self.inputs.eta[1]):
            return None
        lambda_, kappa = (values[self.inputs.channels] for values in self.inputs.eta)
        return GeneralizedLogistic(lambda_, scale=1 / np.abs(kappa))

    def learned_cdf(self, z: np.ndarray) -> np.ndarray | None:
        """Return (Z,) η at the values z, averaged over channels; None if the layer has no η."""
        if self.inputs.eta is None:
            return None
        lambda_, kappa = (values[:, None] for values in self.inputs.eta)
        return GeneralizedLogistic(lambda_, scale=1.0).cdf(np.abs(kappa) * z).mean(axis=0)

    def log_likelihood(self, distribution: GeneralizedLogistic | None) -> float:
        """Return the mean over the sample in nats; NaN without a distribution or sample."""
        if distribution is None or not len(self.inputs.values):
            return math.nan
        return distribution.log_likelihood(self.inputs.values)

    @property
    def advantage_of_gumbel(self) -> tuple[float, float]:
        """Log-likelihood of the Gumbel fit minus that of the logistic fit, in nats per value, and
        its standard error for independent values (Vuong, "Likelihood Ratio Tests for Model
        Selection and Non-Nested Hypotheses", 1989). NaN without fits."""
        if self.gumbel is None:
            return math.nan, math.nan
        values = self.inputs.values.astype(np.float64)
        difference = self.gumbel.log_density(values) - self.logistic.log_density(values)
        return float(difference.mean()), float(difference.std() / math.sqrt(len(values)))

    @property
    def fits_better(self) -> str:
        """ "Gumbel" or "logistic"; "neither" within two standard errors; "" without fits."""
        advantage, error = self.advantage_of_gumbel
        if math.isnan(advantage):
            return ""
        if abs(advantage) < 2 * error:
            return "neither"
        return "Gumbel" if advantage > 0 else "logistic"


@dataclass(frozen=True)
class Analysis:
    """The analyzed layers in execution order, followed by the class scores.

    There is one layer per gate and activation; two per class score and frequency group, for
    ground-truth and other classes.
    """

    layers: list[Layer]
    groups: FrequencyGroups | None
    num_images: int  # that the model ran on

    def of_kind(self, kind: str) -> list[Layer]:
        return [layer for layer in self.layers if layer.inputs.kind == kind]

    def rows(self) -> list[dict[str, str | int | float]]:
        """Return the rows of ``layers.csv``, one per layer; undefined values are empty strings."""
        return [self._row(layer) for layer in self.layers]

    def table(self) -> str:
        """Return the main columns as a text table."""
        rows = []
        for row in self.rows():
            classes = f", {row['group']}, {row['classes']} classes" if row["group"] else ""
            likelihoods = (row[f"log_likelihood_{n}"] for n in ("logistic", "gumbel", "learned"))
            advantage = row["advantage_of_gumbel"]
            rows.append(
                [row["layer"] + classes, row["type"], row["lambda"], row["kappa"], *likelihoods]
                + [row["fits_better"], advantage and abs(advantage)]
            )
        headers = ["layer", "type", "λ", "κ", "logistic", "Gumbel", "learned η", "better", "by"]
        formats = ["", "", ".3f", ".3f", ".3f", ".3f", ".3f", "", ".4f"]
        return tabulate(rows, headers=headers, floatfmt=formats)

    def _row(self, layer: Layer) -> dict[str, str | int | float]:
        inputs, values = layer.inputs, layer.inputs.values.astype(np.float64)
        has_classes = inputs.group is not None
        lambda_, kappa = inputs.eta or (np.full(1, np.nan), np.full(1, np.nan))
        advantage, error = layer.advantage_of_gumbel
        row = {
            "layer": inputs.name,
            "kind": inputs.kind,
            "type": inputs.layer_type,
            "group": self.groups.labels[inputs.group] if has_classes else "",
            "classes": ("ground truth" if inputs.gt_class else "other") if has_classes else "",
            "num_values": inputs.seen,
            "sample_size": len(values),
            "mean": values.mean() if len(values) else math.nan,
            "std": values.std() if len(values) else math.nan,
            "mirrored": inputs.mirrored,
        }
        for name, parameter in (("lambda", lambda_), ("kappa", kappa)):
            row[name] = parameter.mean()
            row[f"{name}_min"], row[f"{name}_max"] = parameter.min(), parameter.max()
        for name, fitted in (("logistic", layer.logistic), ("gumbel", layer.gumbel)):
            row[f"{name}_location"] = fitted.location if fitted else math.nan
            row[f"{name}_scale"] = fitted.scale if fitted else math.nan
            row[f"log_likelihood_{name}"] = layer.log_likelihood(fitted)
        row["log_likelihood_learned"] = layer.log_likelihood(layer.learned)
        row["advantage_of_gumbel"], row["standard_error"] = advantage, error
        row["fits_better"] = layer.fits_better
        return {key: "" if value != value else value for key, value in row.items()}


@torch.no_grad()
def analyze(
    model: nn.Module,
    loader: Iterable[list[dict]],
    *,
    groups: FrequencyGroups | None = None,
    category_groups: np.ndarray | None = None,
    sample_size: int = 100_000,
    seed: int = 0,
) -> Analysis:
    """Run a model on images, and fit distributions to the inputs of its layers.

    Alexandridis et al. (ECCV 2024, section 3) found that gate inputs are closer to a Gumbel than to
    a logistic distribution if classes are imbalanced, so a fixed sigmoid is the wrong gate.

    Args:
        model: a detectron2 model, or any module that takes the loader's batches. It runs in
            evaluation mode; its training mode is restored afterwards.
        loader: batches of inputs. Class scores are analyzed in batches where all inputs have
            ``instances`` (``gt_boxes``, ``gt_classes``), for models with RoI heads, RetinaNet and
            FCOS.
        groups: the frequency groups, for the class scores.
        category_groups: (K,) index of each class's group in ``groups.names``; -1: no group.
        sample_size: maximum number of input values kept per layer.
        seed: seed for sampling values and proposals.
    """
    sampler = InputSampler(model, sample_size, seed)
    has_rois, is_dense = has_roi_class_scores(model), isinstance(model, DenseDetector)
    if category_groups is not None and not (has_rois or is_dense):
        logger.warning("Class scores of %s cannot be analyzed.", type(model).__name__)
    modes, num_images = {m: m.training for m in model.modules()}, 0
    model.eval()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for batch in track(loader, "Running the model", "batches"):
                num_images += len(batch)
                inputs = _run(model, batch, sampler)
                if category_groups is None or not all("instances" in x for x in batch):
                    continue
                if has_rois:
                    targets = [x["instances"] for x in batch]
                    heads = model.roi_heads
                    sample_roi_class_scores(heads, inputs, targets, category_groups, sampler)
                elif is_dense:
                    sample_dense_class_scores(model, batch, category_groups, sampler)
    finally:
        for module, training in modes.items():
            module.training = training
    layers = [
        Layer.of(sample) for sample in track(sampler.samples, "Fitting distributions", "layers")
    ]
    return Analysis(layers, groups, num_images)


def _run(model: nn.Module, batch: list[dict], sampler: InputSampler) -> tuple | None:
    """Run the model; return the images, features and proposals its RoI heads were called with."""
    seen = []
    with ExitStack() as stack:
        if has_roi_class_scores(model):
            hook = model.roi_heads.register_forward_pre_hook(lambda _, args: seen.append(args[:3]))
            stack.callback(hook.remove)
        stack.enter_context(sampler.sampling())
        model(batch)
    return seen[0] if seen else None
