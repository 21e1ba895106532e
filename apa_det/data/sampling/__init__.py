"""Training samplers, their registry, and the training loader."""

from .class_aware import ClassAwareTrainingSampler
from .counts import ClassCounts, class_groups, count_classes, epoch_table
from .loader import build_train_loader, require_train_sampler
from .plain import RandomSubsetTrainingSampler, TrainingSampler
from .registry import TRAIN_SAMPLER_REGISTRY
from .repeat_factor import (
    InstanceAwareRepeatFactorTrainingSampler,
    RepeatFactorTrainingSampler,
    instance_aware_repeat_factors,
)
from .undersampling import UndersamplingTrainingSampler
