"""Fixtures that the tests of several folders share."""

import logging
import os
import runpy
import sys
from pathlib import Path

import pytest
from detectron2.utils.logger import setup_logger

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="session")
def tool():
    """Runs a tool in this process: ``tool("demo", "--input", path)`` returns its exit status."""

    def run(name: str, *arguments) -> int:
        script = str(TOOLS / f"{name}.py")
        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(SystemExit) as exit_:
            monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
            runpy.run_path(script, run_name="__main__")
        return exit_.value.code

    return run


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


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets (LVIS, tinycoco, ...) named by APA_DET_TEST_DATA."""
    folder = os.environ.get("APA_DET_TEST_DATA")
    if not folder:
        pytest.skip("Set APA_DET_TEST_DATA to the folder of real datasets to run this test.")
    if not Path(folder).is_dir():
        pytest.skip(f"APA_DET_TEST_DATA names a missing folder: {folder}")
    return Path(folder)
