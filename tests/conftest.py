"""What the tests of several rooms share."""

import logging

import pytest
from detectron2.utils.logger import setup_logger


@pytest.fixture
def fresh_loggers():
    """Each job sets up loggers of its own; leave none to the next."""
    yield
    for name in ("apa_det", "detectron2", "fvcore"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    setup_logger.cache_clear()
