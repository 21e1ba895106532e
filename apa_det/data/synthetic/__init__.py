"""A small long-tailed dataset, generated."""

from .generate import generate_dataset

__all__ = ["generate_dataset"]
