"""The registry of training samplers."""

from detectron2.utils.registry import Registry

__all__ = ["TRAIN_SAMPLER_REGISTRY"]

TRAIN_SAMPLER_REGISTRY = Registry("TRAIN_SAMPLER")
TRAIN_SAMPLER_REGISTRY.__doc__ = """
Samplers of training pictures, for ``DATALOADER.SAMPLER_TRAIN``.

Each is called with ``(cfg, dataset)``, the second detectron2's dataset dicts, and gives an endless
stream of places in it. All processes draw the same stream from the same seed, and process r of n
takes every n-th place from the r-th on. As in detectron2, a resumed training starts it anew.

A sampler with an attribute ``repeats``, a tensor of shape (N,) of how often an epoch is expected to
see each of the N pictures, has its epoch in the log.
"""
