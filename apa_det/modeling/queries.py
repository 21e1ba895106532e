"""APA scores and long-tailed losses for query detectors: DETR and those that follow it."""

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activation import logit_apa
from ..errors import UserError
from .class_scores import build_apa_score, curve_of, set_prior_bias
from .losses import BINARY_SCORES, SIGMOID, BoxClassLoss

_SCORES = ("softmax", *BINARY_SCORES)
_LOSS_NAMES = ("loss_class", "loss_ce")  # of the class loss in detrex, and in DETR and Mask2Former


def long_tailed_queries(
    model: nn.Module,
    class_loss: BoxClassLoss | None = None,
    *,
    class_score: str | None = None,
    classifiers: str | Sequence[str] = "*class_embed*",
    score_per_class: bool = False,
    score_lambda_range: tuple[float, float] = (1.0, 1.0),
    score_kappa_range: tuple[float, float] = (1.0, 1.0),
    score_lambda_min: float = 1e-4,
    score_prior: float | None = None,
) -> nn.Module:
    """Give a query detector with a DETR-style criterion another class score and class loss.

    A DETR-style criterion is a module with ``num_classes``, ``matcher``, ``weight_dict`` and the
    method ``loss_labels(outputs, targets, indices, num_boxes)``, as in DETR, Deformable DETR,
    detrex and Mask2Former. Three lines change such a model::

        from apa_det.modeling import long_tailed_queries, losses

        class_loss = losses.EqualizationLossV2(num_classes=1203)
        long_tailed_queries(model, class_loss, class_score="apa")

    The classifiers then return the log-odds of the class scores as ``pred_logits``, so the sigmoid
    that the matcher, the loss, the choice of the best queries and the inference apply to them is
    η(z; λ, κ). Models with a softmax over K classes and "no object" get a log-odds of 0 for the
    latter: their softmax is the probability of a class, given that the query has one object at
    most: s_k / (1 + Σ_j s_j) for the odds s_j = η_j / (1 − η_j).

    Call it before the optimizer is built. State dicts keep their names; λ and κ are beside the
    weights of each classifier, as ``score.lambda_param`` and ``score.kappa_param``.

    Args:
        model: the model; it is changed.
        class_loss: the class loss, see :class:`LongTailedCriterion`. None: that of the criterion.
        class_score: "sigmoid", "gumbel" or "apa"; or "softmax" for classifiers with K + 1 outputs.
            None: that of the model.
        classifiers: name patterns of the classifiers, linear layers with K or K + 1 outputs.
        score_per_class, score_lambda_range, score_kappa_range, score_lambda_min: see
            :class:`apa_det.modeling.APAFastRCNNOutputLayers`.
        score_prior: the initial score of every class. None: the one that the bias of the classifier
            has with the sigmoid; 0.01 for K + 1 outputs.

    Returns:
        The same model.

    Raises:
        UserError: the model has no such criterion or classifier, a name is unknown, or the class
            loss does not support the class score or the number of classes.
    """
    criteria = [m for m in model.modules() if _is_criterion(m)]
    if len(criteria) != 1:
        raise UserError(
            f"{type(model).__name__} must have one DETR-style criterion, with num_classes, "
            f"matcher, weight_dict and loss_labels; it has {len(criteria)}."
        )
    (criterion,) = criteria
    number = criterion.num_classes
    patterns = [classifiers] if isinstance(classifiers, str) else classifiers
    layers = {
        id(layer): layer
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear
        and layer.bias is not None
        and layer.out_features in (number, number + 1)
        and any(fnmatchcase(name, pattern) for pattern in patterns)
    }
    widths = {layer.out_features for layer in layers.values()}
    if len(widths) != 1:
        raise UserError(
            f"The classifiers {', '.join(patterns)} must be linear layers with a bias, all with "
            f"{number} or all with {number + 1} outputs; set classifiers to their names in "
            f"{type(model).__name__}."
        )
    has_background = widths == {number + 1}
    class_score = class_score or ("softmax" if has_background else "sigmoid")
    if class_score not in _SCORES or (class_score == "softmax" and not has_background):
        known = ", ".join(_SCORES if has_background else BINARY_SCORES)
        raise UserError(f"class_score must be one of {known} here; got {class_score!r}.")
    replacements: dict[int, nn.Module] = {}
    if class_loss is not None:
        _check_class_loss(class_loss, class_score, number)
        replacements[id(criterion)] = _with_class_loss(criterion, class_loss, class_score)
    if class_score == "softmax" and score_prior is not None:
        raise UserError("score_prior needs class_score sigmoid, gumbel or apa: leave it out.")
    is_plain = class_score == ("softmax" if has_background else "sigmoid")
    if not is_plain or score_prior is not None:
        for key, layer in layers.items():
            score = build_apa_score(
                class_score,
                number if score_per_class else None,
                score_lambda_range,
                score_kappa_range,
                score_lambda_min,
            )
            prior = 0.01 if score_prior is None and has_background else score_prior
            replacements[key] = ScoreLinear(layer, number, class_score, score, prior)
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):  # also those with several names
            if id(child) in replacements:
                setattr(module, name, replacements[id(child)])
    return model


def _is_criterion(module: nn.Module) -> bool:
    names = ("num_classes", "matcher", "weight_dict", "loss_labels")
    return all(hasattr(module, name) for name in names)


def _check_class_loss(loss: BoxClassLoss, class_score: str, num_classes: int) -> None:
    name = type(loss).__name__
    if loss.num_outputs:
        raise UserError(f"{name} needs outputs of its own, which query detectors do not have.")
    if class_score not in loss.class_scores:
        raise UserError(
            f"{name} supports the class scores {', '.join(loss.class_scores)}, but class_score is "
            f"{class_score}. Change one of the two."
        )
    if loss.num_classes != num_classes:
        raise UserError(
            f"{name} has {loss.num_classes} classes, but the criterion has {num_classes}. Use the "
            "same number."
        )


class ScoreLinear(nn.Linear):
    """A classifier of queries that returns the log-odds of sigmoid, Gumbel or APA scores."""

    def __init__(
        self,
        layer: nn.Linear,
        num_classes: int,
        class_score: str,
        score: nn.Module | None,
        prior: float | None,
    ):
        """
        Args:
            layer: the classifier, with K or K + 1 outputs, whose parameters are used.
            num_classes: K.
            class_score: "sigmoid", "gumbel" or "apa".
            score: see :func:`apa_det.modeling.class_scores.build_apa_score`.
            prior: the initial score. None: the one of the layer with the sigmoid.
        """
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.num_classes, self.class_score = num_classes, class_score
        self.score = None if score is None else score.to(self.weight.device)
        set_prior_bias(self.bias.data[:num_classes], class_score, self.score, prior)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-odds, float32, (..., K), or (..., K + 1) with 0 for the background."""
        z = super().forward(x)[..., : self.num_classes].float()
        if self.class_score != "sigmoid":
            rows = z.flatten(0, -2)
            curve = curve_of(self.class_score, self.score, rows)
            z = logit_apa(rows, *curve).view(z.shape)
        return F.pad(z, (0, self.out_features - self.num_classes))


class LongTailedCriterion:
    """The mixin of a DETR-style criterion whose class loss is one of apa_det.

    Queries are what proposals are in the box head: matched ones are foreground. The sum of a loss
    of binary scores over queries and classes is divided by ``num_boxes``, as the focal losses of
    DETRs are. A loss of softmax scores is a mean over queries, in which those without an object
    have the weight ``eos_coef``. The losses of intermediate decoder layers and of denoising queries
    are computed in the same way, and add to running statistics of the class loss.
    """

    def loss_labels(
        self,
        outputs: dict[str, Tensor],
        targets: Sequence[dict[str, Tensor]],
        indices: Sequence[tuple[Tensor, Tensor]],
        num_boxes: Tensor | float,
        **kwargs,
    ) -> dict[str, Tensor]:
        """Return the class loss.

        Args:
            outputs: "pred_logits", (N, Q, K), or (N, Q, K + 1) for a softmax.
            targets: "labels" of each image, int64.
            indices: for each image, the matched queries and their targets.
            num_boxes: the normalizer.
            kwargs: e.g. ``log``, without effect.
        """
        logits = outputs["pred_logits"].float()
        labels = logits.new_full(logits.shape[:2], self.num_classes, dtype=torch.int64)
        for row, target, (queries, objects) in zip(labels, targets, indices, strict=True):
            row[queries.to(row.device)] = target["labels"][objects.to(target["labels"].device)]
        logits, labels = logits.flatten(0, 1), labels.flatten()
        if self.class_score == "softmax":
            return {self.class_loss_name: self._mean(logits, labels)}
        loss = self.class_loss(logits[:, : self.num_classes], labels, SIGMOID)
        return {self.class_loss_name: loss * len(labels) / num_boxes}

    def _mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        total, weights = logits.new_zeros(()), 0.0
        is_foreground = labels < self.num_classes
        for chosen, weight in ((is_foreground, 1.0), (~is_foreground, self.eos_coef)):
            loss = self.class_loss(logits[chosen], labels[chosen], None)
            total = total + weight * int(chosen.sum()) * loss
            weights += weight * int(chosen.sum())
        return total / max(weights, 1e-6)


def _with_class_loss(criterion: nn.Module, class_loss: BoxClassLoss, class_score: str) -> nn.Module:
    """Return a copy of a criterion with another class loss; parts and settings are shared."""
    name = next((name for name in _LOSS_NAMES if name in criterion.weight_dict), None)
    if name is None:
        raise UserError(
            f"The weight_dict of {type(criterion).__name__} must have {' or '.join(_LOSS_NAMES)}, "
            f"got {', '.join(criterion.weight_dict)}."
        )
    result = copy.copy(criterion)
    for attribute in ("_modules", "_buffers", "_parameters"):
        setattr(result, attribute, dict(getattr(criterion, attribute)))
    result.__class__ = _subclass(type(criterion))
    result.class_loss, result.class_score, result.class_loss_name = class_loss, class_score, name
    if class_score == "softmax":
        result.eos_coef = getattr(criterion, "eos_coef", 1.0)
    return result


@cache
def _subclass(kind: type) -> type:
    return type(f"LongTailed{kind.__name__}", (LongTailedCriterion, kind), {})
