"""Input images and output paths."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apa_det.demo import find_images, output_paths
from apa_det.demo.files import read_image
from apa_det.errors import MissingFileError, UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.JPG", "a/1.png", "a/notes.txt", "b/1.png", "b/c/3.webp"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def test_files_folders_and_patterns(folder):
    assert find_images(["b/1.png", "a"]) == ["b/1.png", "a/1.png", "a/2.JPG"]
    assert find_images(["*/1.*", "a/1.png"]) == ["a/1.png", "b/1.png"]
    assert find_images(["b/**/*.webp"]) == ["b/c/3.webp"]


@pytest.mark.parametrize("name", ["nowhere.png", "nowhere/*.png", "empty"])
def test_missing_input(folder, name):
    (folder / "empty").mkdir()
    with pytest.raises(MissingFileError, match=name.replace("*", r"\*")):
        find_images(["a", name])


def test_outputs(folder):
    out = str(folder / "out")
    assert output_paths(["a/1.png"], "x.jpg") == (["x.jpg"], "x.json")
    assert output_paths(["a/1.png"], out) == ([f"{out}/1.png"], f"{out}/detections.json")
    assert output_paths(["a/1.png", "a/2.JPG"], out)[0] == [f"{out}/1.png", f"{out}/2.JPG"]
    assert output_paths(["a/1.png", "b/1.png"], out)[0] == [f"{out}/a/1.png", f"{out}/b/1.png"]
    assert output_paths(["a/1.ppm"], out)[0] == [f"{out}/1.ppm.png"]
    assert output_paths(["clip.webm"], out, [".mp4"])[0] == [f"{out}/clip.webm.mp4"]


def test_output_would_be_lost(folder):
    for inputs, output in ((["a/1.png"], "a/1.png"), (["a/1.png", "a/2.JPG"], "b/../a")):
        with pytest.raises(UserError, match="a/1.png would be overwritten"):
            output_paths(inputs, output)
    with pytest.raises(UserError, match="Cannot write 2 images into the file x.png"):
        output_paths(["a/1.png", "b/1.png"], "x.png")


@pytest.mark.parametrize("mode, value", [("L", 7), ("RGBA", (7, 7, 7, 128)), ("P", 7), ("1", 0)])
def test_reads_any_mode(tmp_path, mode, value):
    Image.new(mode, (5, 3), value).save(tmp_path / "x.png")
    assert read_image(str(tmp_path / "x.png")).shape == (3, 5, 3)


@pytest.mark.parametrize("end", [0, 10, 300])
def test_broken_image(tmp_path, end):
    path = tmp_path / "broken.jpg"
    noise = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match="Cannot read the image .*broken.jpg"):
        read_image(str(path))
