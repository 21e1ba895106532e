"""File names may leave the image root only where a key allows it."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog

from apa_det.data import check_dataset, load_lvis_format
from apa_det.engine import read_job
from apa_det.errors import UserError
from apa_det_cli import main

OUTSIDE = ["../b.png", "x/../../b.png", "..", "{root}/b.png"]


@pytest.fixture
def files(small, write, tmp_path):
    """Return the JSON file and the image root, with a file_name of image 7."""

    def build(name):
        path = write(small)
        name = name.format(root=tmp_path)
        small["images"][0]["file_name"] = name
        (tmp_path / "root/x").mkdir(parents=True)
        (tmp_path / "a.png").rename(tmp_path / "root/a.png")
        path.write_text(json.dumps(small))
        return path, tmp_path / "root"

    return build


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside(name, files):
    path, root = files(name)
    with pytest.raises(
        UserError, match="Image 7 has the file_name .* must be inside the image roo"
    ):
        load_lvis_format(path, root)
    (problem,) = check_dataset(path, root).problems
    assert (
        problem.kind == "image file outside the image root" and "image 7" in problem.message.lower()
    )
    file_name = load_lvis_format(path, root, allow_outside_root=True)[1]["file_name"]
    if name != "..":
        assert os.path.samefile(file_name, root.parent / "b.png")
        assert not check_dataset(path, root, allow_outside_root=True).problems


@pytest.mark.parametrize("name", ["b.png", "x/../b.png", "./b.png", "..b.png", "x/..b/b.png"])
def test_inside(name, files):
    path, root = files(name)
    assert load_lvis_format(path, root)[1]["file_name"] == f"{root}/{name}"


def test_the_end_of_an_address(small, files):
    """The file name of LVIS v1 is the end of coco_url."""
    del small["annotations"][:]
    path, root = files("b.png")
    text = path.read_text().replace('"file_name": "b.png"', '"coco_url": "http://x/../b.png"')
    path.write_text(text)
    with pytest.raises(UserError, match="'../b.png', which must be inside the image root"):
        load_lvis_format(path, root)


def test_key(files, quickstart):
    path, root = files("../b.png")
    assert main(["prepare-dataset", "check", str(path), str(root)]) == 1
    check = ["prepare-dataset", "check", str(path), str(root), "--allow-outside-root"]
    assert main(check) == 0
    for i, allowed in enumerate((False, True)):
        entry = [[f"outside_yaml_{i}", str(path), str(root)]]
        opts = ["DATASETS.LVIS_FORMAT", entry, "DATASETS.ALLOW_OUTSIDE_ROOT", allowed]
        read_job(quickstart.yaml, opts)
        entry = f"dataloader.lvis_format=[[outside_lazy_{i},{path},{root}]]"
        read_job(quickstart.lazy, [entry, f"dataloader.allow_outside_root={allowed}"])
        for name in (f"outside_yaml_{i}", f"outside_lazy_{i}"):
            if allowed:
                assert len(DatasetCatalog.get(name)) == 2
            else:
                with pytest.raises(UserError, match="DATASETS.ALLOW_OUTSIDE_ROOT to True"):
                    DatasetCatalog.get(name)
            DatasetCatalog.remove(name)
