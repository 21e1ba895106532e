"""The registry of training samplers."""

from detectron2.utils.registry import Registry

TRAIN_SAMPLER_REGISTRY = Registry("TRAIN_SAMPLER")
TRAIN_SAMPLER_REGISTRY.__doc__ = """
Training samplers, for ``DATALOADER.SAMPLER_TRAIN``.

Each is called with ``(cfg, dataset)``, where ``dataset`` is a sequence of detectron2 dataset dicts,
a list or :class:`apa_det.data.DatasetRecords`, and yields an infinite stream of indices into it.
All processes draw the same stream from the same seed; process r of n takes every n-th index,
starting at the r-th. As in detectron2, a resumed training restarts the stream.

If a sampler has an attribute ``repeats``, a tensor of shape (N,) with the expected number of times
an epoch sees each of the N images, the training loader logs the expected contents of an epoch.
"""
