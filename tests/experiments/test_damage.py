"""Runs with damaged files are named and trained anew; the others stay."""

import gzip
import json
import logging
import os

import pytest

from apa_det.errors import UserError
from apa_det.experiments import discard_damaged, read_plan
from apa_det.experiments.damage import find_damage
from apa_det.utils.folder_lock import is_locked

from ..conftest import locked_by_another

RESULT = {
    **{"metrics": {}, "iterations": 4, "seconds_per_iteration": 1.0, "peak_memory_mb": 1.0},
    **{"image_digest": "a", "versions": {}},
}


@pytest.fixture
def plan(config_file, tmp_path):
    plan = read_plan(tmp_path, configs=[config_file], seeds=[1, 2])
    for run in plan.runs:
        os.makedirs(run.folder)
        run.job.save_config()
        write(run.result_file, json.dumps(RESULT))
        with gzip.open(run.predictions_file, "wt") as file:
            json.dump([], file)
    return plan


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def cut(path):
    os.truncate(path, os.path.getsize(path) - 4)


def unfinished(run):
    os.remove(run.result_file)
    write(os.path.join(run.folder, "last_checkpoint"), "model_0000001.pth")


DAMAGES = {
    "config.yaml": lambda run: write(run.config_file, "\0"),
    "result.json ": lambda run: cut(run.result_file),
    "result.json is damaged: it has no metrics": lambda run: write(run.result_file, "{}"),
    "predictions.json.gz is missing": lambda run: os.remove(run.predictions_file),
    "predictions.json.gz is missing or damaged": lambda run: cut(run.predictions_file),
    "model_0000001.pth in .* is missing": unfinished,
}


@pytest.mark.parametrize("named", DAMAGES)
def test_damaged_run(plan, named, caplog):
    first, second = plan.runs
    assert find_damage(first) == find_damage(second) == ""
    DAMAGES[named](second)
    with caplog.at_level(logging.WARNING):
        discard_damaged(plan)
    assert named.split(" ")[0] in caplog.text and "The run starts anew." in caplog.text
    assert os.path.isdir(first.folder) and not os.path.exists(second.folder)


def test_run_of_another_process_stays(plan):
    run = plan.runs[0]
    assert not is_locked(run.folder)
    with locked_by_another(run.folder):
        assert is_locked(run.folder)
        cut(run.result_file)
        with pytest.raises(UserError, match="another training runs"):
            discard_damaged(plan)
        assert os.path.exists(run.result_file)
    assert not is_locked(run.folder)
