"""Weights that cannot be had: every command says so before it reads data or builds a model."""

import importlib
import re

import cv2
import numpy as np
import pytest

from apa_det.engine.setup.lazy import LazyJob
from apa_det.engine.setup.yaml import YamlJob
from apa_det_cli.runner import run_command

COMMANDS = {
    "train_detector": ["--num-gpus", "0"],
    "train_detector --eval-only": ["--eval-only"],
    "evaluate_detector": [],
    "calibrate_scores": ["--method", "NorCal"],
    "analyze_activations": ["--output", "out"],
    "export_model": ["--sample-image", "x.png", "--output", "out"],
    "run_demo": ["--input", "x.png", "--output", "out"],
    "ensemble": ["--checkpoints", "WEIGHTS", "WEIGHTS", "--gt", "GT", "--output", "out.json"],
    "compare_configs": ["--seeds", "0", "--output", "out"],
}
URL = "http://127.0.0.1:9/folder/file.pth"
WEIGHTS = {
    URL: f"Cannot download {URL}: .*refused.*or download the file and name its path.",
    "detectron2://a/../b.pkl": "Cannot download detectron2://a/../b.pkl: a URL must not contain",
    "pretrained/SE_R-50_APA.pth": "pretrained/SE_R-50_APA.pth, which does not exist: set it to the "
    "path .* The authors of APA publish theirs at https://github.com/kostas1515/AGLU.",
    "a\x1b[31m.pth": r"a\\x1b\[31m.pth, which does not exist",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, in which no model can be built and no dataset is read."""

    def used(*_, **__):
        raise AssertionError("built or read before the weights were checked")

    monkeypatch.chdir(tmp_path)
    for job in (YamlJob, LazyJob):
        for name in ("build_model", "build_train_loader", "build_test_loader"):
            monkeypatch.setattr(job, name, used)
    cv2.imwrite("x.png", np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("format", ["yaml", "lazy"])
@pytest.mark.parametrize("command", COMMANDS)
def test_one_sentence(command, format, folder, quickstart, tiny_dataset, capfd):
    lazy = format == "lazy"
    config = quickstart.lazy if lazy else quickstart.yaml
    opts = quickstart.lazy_opts if lazy else quickstart.opts
    for weights, message in WEIGHTS.items():
        if lazy and not weights.isprintable():
            continue  # no override of Hydra's
        values = {"WEIGHTS": weights, "GT": str(tiny_dataset / "val.json")}
        flags = [values.get(flag, flag) for flag in COMMANDS[command]]
        setting = ["train.init_checkpoint=" + weights] if lazy else ["MODEL.WEIGHTS", weights]
        output = ["train.output_dir=out"] if lazy else ["OUTPUT_DIR", "out"]
        if command == "ensemble":
            setting = []
        module = importlib.import_module(f"apa_det_cli.{command.split()[0]}")
        options = ["--config-file", config, *flags, "--opts", *opts, *output, *setting]
        try:
            status = run_command(module, options, "apa-det")
        except SystemExit as end:  # of the launcher of processes
            status = end.code
        error = capfd.readouterr().err
        assert status == 2, error[-3000:]
        lines = [line for line in error.splitlines() if line.startswith("apa-det: ")]
        assert len(lines) == 1 and lines[0].isprintable(), error[-3000:]
        assert re.search(message, lines[0]), lines
