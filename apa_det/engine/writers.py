"""Event writers beside those of detectron2, for example of an experiment tracker."""

from detectron2.utils.registry import Registry

WRITER_REGISTRY = Registry("EVENT_WRITER")
WRITER_REGISTRY.__doc__ = """
Registry of event writers, by the names in the config key ``WRITERS``.

Each is called with the :class:`apa_det.engine.Job`, in the main process of a training, and returns
a ``detectron2.utils.events.EventWriter``. Its ``write`` is called as often as that of the others,
its ``close`` when the training ends.
"""
