"""The shipped configs by name, from a checkout and in a wheel, and the packages of apa_det."""

import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg

import apa_det
from apa_det import model_zoo
from apa_det.engine import read_config
from apa_det.errors import MissingFileError, UserError

ROOT = Path(__file__).parents[1]
YAML = "LVISv1-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x.yaml"
LAZY = YAML.replace(".yaml", ".py")


def test_all_configs_of_detectors_are_listed():
    names = model_zoo.list()
    assert YAML in names and LAZY in names
    for name in names:
        assert Path(model_zoo.get_config_file(name)).samefile(ROOT / "configs" / name)
        lazy = name.endswith(".py")
        assert "model" in model_zoo.get_config(name) if lazy else True
    all_files = [p for suffix in ("yaml", "py") for p in (ROOT / "configs").glob(f"*/*.{suffix}")]
    others = {p.relative_to(ROOT / "configs").as_posix() for p in all_files} - set(names)
    assert others and all(n.startswith(("Comparison/", "common/")) or "/Base-" in n for n in others)


def test_a_config_is_that_of_the_file():
    expected = get_cfg()
    apa_det.add_apa_config(expected)
    expected.merge_from_file(str(ROOT / "configs" / YAML))
    assert model_zoo.get_config(YAML) == expected


def test_trained_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=r"pretrained/mask_rcnn_SE_R_50.*kostas1515/AGLU"):
        model_zoo.get_config(YAML, trained=True)
    file = tmp_path / "pretrained/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x.pth"
    file.parent.mkdir()
    file.touch()
    name = str(file.relative_to(tmp_path))
    assert model_zoo.get_config(YAML, trained=True).MODEL.WEIGHTS == name
    assert model_zoo.get_config(LAZY, trained=True).train.init_checkpoint == name
    with pytest.raises(UserError, match="No checkpoint of Quickstart.* is published"):
        model_zoo.get_config("Quickstart/mask_rcnn_R_18_FPN_APA.yaml", trained=True)


def test_unknown_names(tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match="apa_det ships no config a.yaml"):
        model_zoo.get_config("a.yaml")
    monkeypatch.chdir(tmp_path)  # no checkout
    with pytest.raises(MissingFileError, match=f"apa_det ships it as {ROOT}/configs/{YAML}"):
        read_config(f"configs/{YAML}")


def test_the_wheel_has_all_configs(tmp_path, monkeypatch):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    before = model_zoo.list()
    monkeypatch.setattr(model_zoo, "_PACKAGE", tmp_path / "apa_det")
    assert model_zoo.configs_folder() == tmp_path / "apa_det/configs"
    assert model_zoo.list() == before
    monkeypatch.setattr(model_zoo, "_PACKAGE", tmp_path / "elsewhere/apa_det")
    with pytest.raises(MissingFileError, match="install apa_det again"):
        model_zoo.configs_folder()
