"""What a training and its evaluation print: no warning of a package, and no line twice."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from ..conftest import ROOT

UNWANTED = (
    "Warning",
    "deprecated",
    "meshgrid",
    "is_fx_tracing",
    "pkg_resources",
    "timm",
    "fvcore.nn",
    "CUDA_HOME",
    "cannot be loaded",
    "Traceback",
    "it/s]",  # bars
    "BatchNorm2d(",  # the model
    "LAMBDA_MIN:",  # the config
)
BY_EVALUATION = ("copypaste: ", "|", "Start inference on", "Inference done", "Evaluating ")


@pytest.fixture
def yaml_flags(tiny_config, tmp_path):
    options = [
        *("OUTPUT_DIR", tmp_path / "output", "TEST.EVAL_PERIOD", 1),
        *("TEST.EXTRA_METRICS", "('fixed',)", "TEST.DETECTIONS_PER_IMAGE", 5),
        *("TEST.BEST_METRIC", "bbox/APf", "MODEL.DEVICE", "cpu"),
    ]
    return [tiny_config, *options], "TEST.BEST_METRIC", "LAMBDA_MIN:"


@pytest.fixture
def lazy_flags(quickstart, tmp_path):
    options = [
        *quickstart.lazy_opts,
        *(f"train.output_dir={tmp_path}/output", "train.eval_period=1"),
        *("+dataloader.evaluator.extra_metrics=[fixed]", "train.best_metric=bbox/APf"),
        "model.roi_heads.box_predictor.test_topk_per_image=5",
    ]
    return [quickstart.lazy, *options], "train.best_metric", "Contents of args.config_file"


@pytest.mark.parametrize("flags", ["yaml_flags", "lazy_flags"])
def test_training_and_evaluation(flags, tmp_path, request):
    """Two iterations with an evaluation after each; what is long is in the log file alone."""
    arguments, key, in_log = request.getfixturevalue(flags)
    command = [sys.executable, ROOT / "tools/train_net.py", "--config-file", *arguments]
    done = subprocess.run(
        [*map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [re.sub(r"^.*?\[[^]]* [a-z_0-9.]+\]: ", "", line) for line in done.stdout.splitlines()]
    for text in UNWANTED:
        assert not [line for line in lines if text in line], text
    counts = Counter(line for line in lines if not line.startswith(BY_EVALUATION) and line)
    repeated = {line: number for line, number in counts.items() if number > 1}
    allowed = ("Evaluation results for", "Categories evaluated:", "NaN:", "Distribution of")
    assert not [line for line in repeated if not line.startswith(allowed)], repeated
    assert all(number == 2 for number in repeated.values())
    assert sum("detectron2._C" in line for line in lines) <= 1  # if it is not built
    warnings = [line for line in done.stdout.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1 and f"{key} is bbox/APf, which is NaN" in warnings[0]
    assert sum("AP-fixed is too low: many images have exactly 5" in line for line in lines) == 1
    log = (tmp_path / "output/log.txt").read_text()
    assert "BatchNorm2d(" in log and in_log in log and "Command line arguments" in log
