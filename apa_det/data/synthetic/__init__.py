"""A small synthetic long-tailed dataset."""

from .generate import generate_dataset
