"""troubleshooting.md quotes sentences of apa_det, and its numbers are right; so is lvis.md."""

import ast
import json
import re
from pathlib import Path

import pytest
from detectron2.engine import DefaultTrainer

import apa_det
from apa_det.data import read_lvis_json
from apa_det.engine import read_config

PACKAGE = Path(apa_det.__file__).parent
LVIS = "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_AGLU_gate_score_1x.yaml"
PAGE = "docs/troubleshooting.md"


@pytest.fixture(scope="module")
def strings() -> str:
    """The string constants of apa_det, also those between the fields of f-strings."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return "\n".join(
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_quoted_sentences_exist(pages, strings):
    quotes = [quote.replace("\n", " ") for quote in re.findall(r'"([^"`]+)"', pages[PAGE])]
    assert len(quotes) > 12
    for quote in quotes:
        if quote.startswith("Non-existent config key"):
            continue  # of yacs
        for part in filter(None, re.split(r" ?…[?]? ?", quote)):
            assert part in strings, quote


def test_one_gpu(pages):
    cfg = read_config(apa_det.model_zoo.get_config_file(LVIS), ["SOLVER.REFERENCE_WORLD_SIZE", 8])
    scaled = DefaultTrainer.auto_scale_workers(cfg, 1)
    for name in ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER"):
        row = f"| `SOLVER.{name}` | {cfg.SOLVER[name]:,} | {scaled.SOLVER[name]:,} |"
        assert row in pages[PAGE]


def test_minival(pages, tiny_dataset, tmp_path, monkeypatch):
    """The code of lvis.md keeps the images of val2017, and what belongs to them."""
    val = json.loads((tiny_dataset / "val.json").read_text())
    for i, image in enumerate(val["images"]):
        folder = "val2017" if i % 3 == 0 else "train2017"
        image["coco_url"] = f"http://images.cocodataset.org/{folder}/{image.pop('file_name')}"
    (tmp_path / "datasets/lvis").mkdir(parents=True)
    (tmp_path / "datasets/lvis/lvis_v1_val.json").write_text(json.dumps(val))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```\n(import json\n.*?)^```$", pages["docs/lvis.md"], re.M | re.S)
    exec(code, {})
    written = read_lvis_json("datasets/lvis/lvis_v1_minival.json")
    kept = {image["id"] for image in val["images"][::3]}
    assert {image["id"] for image in written["images"]} == kept
    expected = [a["id"] for a in val["annotations"] if a["image_id"] in kept]
    assert [a["id"] for a in written["annotations"]] == expected
    assert written["categories"] == val["categories"]
