"""The scripts, the notebook and the table of other-projects.md."""

import ast
import json
import re
import shlex
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch.optim.optimizer import register_optimizer_step_pre_hook

import apa_det
from apa_det.config.defaults import KEYS
from apa_det.config.ignored_keys import _Training
from apa_det.config.lazy_keys import LAZY_KEYS
from apa_det.data import generate_dataset
from apa_det.evaluation import METRICS

PAGE = "docs/other-projects.md"
SHORT = {
    "default_train.py": "SOLVER.MAX_ITER 2 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2",
    "lazy_train.py": "train.max_iter=2 train.log_period=1 "
    "dataloader.train.num_workers=0 dataloader.test.num_workers=0 "
    "model.proposal_generator.post_nms_topk=[20,20]",
}
# Those of train.* that detectron2's common/train.py has too
LAZY_OF_DETECTRON2 = {"train.ddp.find_unused_parameters", "train.checkpointer.max_to_keep"}


@pytest.fixture(scope="module")
def files(pages) -> dict[str, str]:
    """The Python files of the page, each named first in the paragraph above it."""
    block = r"^A \w+ `(\w+\.py)`(?:.+\n)+\n```python\n((?:.*\n)*?)```$"
    return dict(re.findall(block, pages[PAGE], re.M))


@pytest.fixture(scope="module")
def cells(pages, blocks) -> list[str]:
    return blocks(pages[PAGE].partition("## Notebook")[2].partition("\n## ")[0], "python")


@pytest.fixture
def folder(tmp_path, monkeypatch, forget_datasets):
    """The current folder, with a small dataset of the quickstart."""
    generate_dataset(tmp_path / "datasets/quickstart", num_train=8, num_val=2)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


@pytest.fixture
def run(pages, files, folder, monkeypatch):
    """Runs a script as the page does, but shorter; returns the keys that act in its first step."""
    for name, text in files.items():
        Path(name).write_text(text)

    def run(name: str) -> dict[str, bool]:
        (command,) = re.findall(rf"^python ({name}.*?)(?:  #.*)?$", pages[PAGE], re.M)
        monkeypatch.setattr(sys, "argv", shlex.split(command) + SHORT[name].split())
        acts: dict[str, bool] = {}

        def look(optimizer, *_):
            if not acts:
                training = _Training(optimizer)
                acts.update({name: training.fault(name, "another") is None for name in CHECKED})

        handle = register_optimizer_step_pre_hook(look)
        try:
            exec(compile(files[name], name, "exec"), {"__name__": "__main__"})
        finally:
            handle.remove()
        return acts

    return run


# Keys whose effect is seen by the objects of a training
CHECKED = [
    name
    for name, key in KEYS.items()
    if key.place.classes and not key.place.classes[0].startswith("apa_det.modeling")
]


@pytest.fixture(scope="module")
def rows(pages) -> dict[str, list[str]]:
    """For each key, the cells of its row after the first, in the table of the page."""
    text = pages[PAGE].partition("## Which keys act where")[2]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\| `.*\|$", text.partition("\n### ")[0], re.M)
    ]
    patterns = {p: i for i, row in enumerate(table) for p in re.findall(r"`(.+?)`", row[0])}
    used = set()
    found = {}
    for name in KEYS:
        pattern = max((p for p in patterns if fnmatchcase(name, p)), key=len, default=None)
        assert pattern, f"{name} is in no row"
        used.add(pattern)
        found[name] = table[patterns[pattern]][1:]
    assert used == patterns.keys()
    return found


def test_scripts_are_complete_and_short(files):
    for name in SHORT:
        lines = [line for line in files[name].splitlines() if line.strip()]
        assert len(lines) <= 25, name
    names = {
        node.id
        for node in ast.walk(ast.parse(files["default_train.py"]))
        if isinstance(node, ast.Name)
    }
    assert {"LongTailEvaluator", "build_optimizer", "build_train_loader"} <= names


def check_output(folder: Path, prefix: str = "") -> None:
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert any(name.endswith("lambda_param") for name in state)
    lines = (folder / "metrics.json").read_text().splitlines()
    assert any("loss_cls" in json.loads(line) for line in lines)
    log = (folder / "log.txt").read_text()
    assert "apa_det.evaluation.evaluator" in log and "do not act" not in log


def test_default_trainer(run, rows, files):
    acts = run("default_train.py")
    check_output(Path("output/default_train"))
    called = {
        *re.findall(r"\w+", files["default_train.py"]),
        *("param_groups", "APADatasetMapper"),  # of build_optimizer, and of build_train_loader
        "APAInjected",  # a model, which the config selects
    } - {"Trainer", "train"}  # its own
    for name, (where, ours, default, _) in rows.items():
        place = KEYS[name].place
        named = {part.split(".")[-1] for part in re.findall(r"`([\w.]+)`", place.text)}
        if name in CHECKED and "Sampler" not in place.text:  # the config selects the sampler
            assert acts[name] == default.startswith("yes"), name
        elif named and not place.classes:
            assert bool(named & called) == default.startswith("yes"), name
            assert named & {*re.findall(r"\w+", where)}, name
        elif name != "IMPORTS":
            assert default == "yes" and ("backbones" in where or "samplers" in where), name
        assert ours == "yes" or name.startswith("SOLVER.DECOUPLED.") or name == "IMPORTS"


def test_predictor(folder, pages, blocks):
    cfg = apa_det.model_zoo.get_config("Quickstart/mask_rcnn_R_18_FPN_APA.yaml")
    cfg.MODEL.DEVICE = "cpu"
    (folder / "output").mkdir()
    DetectionCheckpointer(build_model(cfg), str(folder / "output")).save("model_final")
    (code,) = blocks(pages[PAGE].partition("## Predictors and weights")[2], "python")
    namespace = {}
    exec(compile(code, "predictor", "exec"), namespace)
    assert len(namespace["predictor"].metadata.thing_classes) == 16
    assert Path("output/predicted.png").is_file()


def test_lazy_config(run, rows):
    acts = run("lazy_train.py")
    check_output(Path("output/lazy_train"))
    lazy = {kind: name for name, kind in LAZY_KEYS.items() if isinstance(kind, str)}
    for name, (_, _, default, cell) in rows.items():
        counterpart = lazy.get(name, "")
        if counterpart in LAZY_OF_DETECTRON2 or name == "SOLVER.CHECKPOINTS_KEPT":
            assert cell.startswith("yes"), name
        elif counterpart.startswith("train."):
            assert not cell.startswith("yes") and cell == default, name
        elif counterpart.startswith("dataloader."):
            assert cell.startswith("yes"), name
        if name in CHECKED and "Sampler" not in KEYS[name].place.text and counterpart:
            if counterpart not in LAZY_OF_DETECTRON2:
                assert acts[name] == cell.startswith("yes"), name


def test_notebook(cells, folder, capsys):
    (folder / "output").mkdir()
    namespace = {}
    assert len(cells) == 5 and "= 20, 2, 0.005" in cells[0]
    cells = [cells[0].replace("= 20, 2,", "= 3, 2,"), *cells[1:]]
    for i, cell in enumerate(cells):
        exec(compile(cell, f"cell {i}", "exec"), namespace)
    assert capsys.readouterr().out.count("loss_mask") == 3
    assert {*METRICS} <= namespace["results"]["segm"].keys()
    losses = namespace["losses"].values()
    assert all(loss.isfinite() for loss in losses)
    assert (folder / "output/notebook.png").is_file()
