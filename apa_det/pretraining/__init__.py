"""Pretraining of the backbones as ImageNet classifiers, with timm."""

from .classifier import APAClassifier
from .training import Settings, pretrain
