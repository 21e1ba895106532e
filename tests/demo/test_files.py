"""Input images and output paths."""

from pathlib import Path

import pytest

from apa_det.demo import find_images, output_paths
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


def test_odd_names_stay_in_the_folder(folder):
    out = str(folder / "out")
    names = {
        "a\x1b[31m\n.png": "a_[31m_.png",
        "..hidden.png": "..hidden.png",
        "C:\\x|y?.png": "C__x_y_.png",
        "NUL.png": "_NUL.png",
        "é" * 120 + ".ppm": "é" * 96 + ".ppm.png",
        " .png": ".png",
    }
    for name, expected in names.items():
        assert output_paths([name], out)[0] == [f"{out}/{expected}"]
        assert len(expected.encode()) <= 200
    assert output_paths(["NUL/x.png", "b/x.png"], out)[0] == [f"{out}/_NUL/x.png", f"{out}/b/x.png"]
    assert output_paths(["../../../x.png"], out)[0] == [f"{out}/x.png"]


def test_one_output_for_two_inputs(folder):
    for inputs in (["a/x\n.png", "a/x\t.png"], ["a/1.ppm", "a/1.ppm.png"]):
        with pytest.raises(UserError, match=r"a/[x1].* and .*a/.* would both be written to .*out/"):
            output_paths(inputs, "out")
    assert output_paths(["a/1.png", "b/../a/1.png"], "out")[0] == ["out/1.png", "out/1.png"]


def test_output_would_be_lost(folder):
    for inputs, output in ((["a/1.png"], "a/1.png"), (["a/1.png", "a/2.JPG"], "b/../a")):
        with pytest.raises(UserError, match="a/1.png would be overwritten"):
            output_paths(inputs, output)
    with pytest.raises(UserError, match="Cannot write 2 images into the file x.png"):
        output_paths(["a/1.png", "b/1.png"], "x.png")
