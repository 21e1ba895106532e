"""Helpers to write datasets of other tools."""

import json
from pathlib import Path

import pytest
from PIL import Image

from apa_det_cli import main


@pytest.fixture
def save(tmp_path):
    """Write a text file, or a black image of (width, height), below tmp_path; returns its path."""

    def write(name: str, content: str | tuple[int, int]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            Image.new("RGB", content).save(path)
        return path

    return write


@pytest.fixture
def convert(tmp_path):
    """Run ``apa-det prepare-dataset`` and ``check``; returns the datasets by name."""

    def run(command: str, source: Path, image_root: Path, *flags: str) -> dict[str, dict]:
        folder = tmp_path / "lvis"
        status = main(["prepare-dataset", command, str(source), "--output", str(folder), *flags])
        assert status == 0
        for path in folder.glob("*.json"):
            assert main(["prepare-dataset", "check", str(path), str(image_root)]) == 0
        return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}

    return run
