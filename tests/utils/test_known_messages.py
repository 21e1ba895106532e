"""Only the known messages are hidden, and only once they are asked to be."""

import logging
import warnings

import pytest
import torch

from apa_det.utils.known_messages import hide_known_messages

LOGGERS = ("torch.fx._symbolic_trace", "detectron2.data.dataset_mapper", "apa_det.data.lvis_format")


@pytest.fixture(autouse=True)
def restored():
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [list(logger.filters) for logger in loggers]
    for logger in loggers:
        logger.filters.clear()
    yield
    for logger, filters in zip(loggers, before, strict=True):
        logger.filters[:] = filters


def test_warnings():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.functional.meshgrid(torch.ones(2), torch.ones(2))
        hide_known_messages()
        hide_known_messages()
        number = len(seen)
        torch.functional.meshgrid(torch.ones(2), torch.ones(2))
        assert len(seen) == number
        warnings.warn("torch.meshgrid: in an upcoming release, of another module", stacklevel=1)
        warnings.warn("another one", stacklevel=1)
        assert [str(w.message)[:10] for w in seen[number:]] == ["torch.mesh", "another on"]


def test_logs(caplog):
    caplog.set_level(logging.INFO)
    hide_known_messages()
    trace, mapper, _ = map(logging.getLogger, LOGGERS)
    trace.warning("is_fx_tracing will return true for both fx.symbolic_trace and torch.export.")
    trace.warning("another")
    for size in (1, 1, 2):
        mapper.info("[DatasetMapper] Augmentations used in inference: %d", size)
        mapper.info("another")
    mapper_messages = [
        "[DatasetMapper] Augmentations used in inference: 1",
        "another",
        "another",
        "[DatasetMapper] Augmentations used in inference: 2",
        "another",
    ]
    assert caplog.messages == ["another", *mapper_messages]
