"""Classification losses of the box head, most of them for long-tailed data, by family."""

from .balanced_softmax import BalancedSoftmax, log_prior_ratios
from .base import (
    BINARY_SCORES,
    BOX_CLASS_LOSS_REGISTRY,
    SIGMOID,
    BoxClassLoss,
    Curve,
    FrequencyLoss,
    build_box_class_loss,
    log_odds,
    look_up_frequencies,
)
from .class_weights import (
    WeightedLoss,
    effective_number_weights,
    inverse_weights,
    read_class_weights,
)
from .cross_entropy import CrossEntropy, binary_cross_entropy, softmax_cross_entropy
from .drop import DropLoss, drop_loss, drop_loss_weights, share_of_scarce_labels
from .effective_margin import (
    EffectiveClassMarginLoss,
    effective_class_margin_loss,
    effective_class_margins,
)
from .equalization import (
    EqualizationLoss,
    EqualizationLossV2,
    equalization_loss_v2,
    equalization_weights,
    gradients_by_class,
)
from .federated import FederatedLoss, federated_classes
from .focal import FocalLoss, focal_loss
from .grouped_softmax import BalancedGroupSoftmax, group_softmax_loss, group_softmax_probabilities
from .seesaw import SeesawLoss, seesaw_factors, seesaw_loss
