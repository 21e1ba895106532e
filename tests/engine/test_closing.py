"""The end of the log: the best model, its files, and commands that run as printed."""

import json
import shlex
from types import SimpleNamespace

import pytest
from detectron2.data.datasets import register_coco_instances

import apa_det_cli
from apa_det.engine import evaluate, setup_job, train
from apa_det.engine.closing import best_model

from .table_detector import as_coco


def line(iteration, *, final=False, **metrics):
    metrics = {name.replace("_", "/"): value for name, value in metrics.items()}
    losses = {} if final else {"total_loss": 1.0}
    return {"iteration": iteration, "evaluation_time": 1.0, **losses, **metrics}


def described(folder, lines, *, best_metric="", files=()):
    (folder / "metrics.json").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    for name in files:
        (folder / name).touch()
    keys = {"best_metric": "TEST.BEST_METRIC"}
    job = SimpleNamespace(output_dir=str(folder), best_metric=best_metric, KEYS=keys)
    sentence, path = best_model(job)
    return sentence.replace(str(folder), "OUT"), path.replace(str(folder), "OUT")


LINES = [line(1, segm_AP=3.0, segm_APr=9.0), line(3, segm_AP=7.0), line(6, segm_AP=5.0, final=True)]


@pytest.mark.parametrize(
    ("best_metric", "files", "sentence", "name"),
    [
        ("segm/AP", ["model_best.pth"], "Best segm/AP: 7.00, after 4 of 6 iterations: ", "best"),
        ("segm/APr", ["model_best.pth"], "Best segm/APr: 9.00, after 2 of 6 iterations: ", "best"),
        ("segm/APf", [], "Best segm/AP: 7.00, after 4 of 6 iterations, whose weights", "final"),
        ("", ["model_0000003.pth"], "Best segm/AP: 7.00, after 4 of 6 iterations: ", "0000003"),
        ("", ["model_0000004.pth"], "Best segm/AP: 7.00, after 4 of 6 iterations, whose", "final"),
    ],
)
def test_best_model(best_metric, files, sentence, name, tmp_path):
    text, path = described(tmp_path, LINES, best_metric=best_metric, files=files)
    assert text.startswith(sentence) and path == f"OUT/model_{name}.pth" and path in text
    if "not kept" in text:
        assert "set TEST.BEST_METRIC to segm/AP to keep them. The last model, with 5.00" in text


def test_last_model_is_the_best_of_equal_ones(tmp_path):
    lines = [line(1, bbox_AP=0.0), line(4, bbox_AP=0.0, final=True)]
    text, _ = described(tmp_path, lines)
    assert text == "Best bbox/AP: 0.00, after 4 of 4 iterations: OUT/model_final.pth"


def test_without_evaluation(tmp_path):
    text, _ = described(tmp_path, [{"iteration": 9, "total_loss": 1.0}])
    assert text == "The model after 10 iterations: OUT/model_final.pth"


@pytest.fixture
def next_command(capsys):
    """Runs the last command that was printed, if it is the expected one; returns its words."""

    def run(expected):
        printed = capsys.readouterr().out.splitlines()
        commands = [words for text in printed if (words := text.strip()).count("apa-det ")]
        _, *words = shlex.split(commands[-1])
        assert words[0] == expected, commands
        assert apa_det_cli.main(words) == 0
        return words

    return run


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_commands_run_as_printed(kind, arguments, lazy_arguments, tmp_path, next_command):
    """Training, evaluation and report, in a folder with an odd name."""
    output = tmp_path / "it's $my output"
    if kind == "yaml":
        args = arguments("OUTPUT_DIR", output, "TEST.FREQUENCY_GROUPS", "few:3,many")
    else:
        quoted = str(output).replace("'", r"\'")
        args = lazy_arguments(f"train.output_dir='{quoted}'", "train.max_iter=1")
    train(setup_job(args))
    assert not (output / "inference/lvis_instances_results.json").exists()
    next_command("eval")
    words = next_command("evaluate-predictions")
    assert (output / "report/report.html").is_file()
    groups = words[words.index("--groups") + 1] if "--groups" in words else ""
    assert groups == {"yaml": "few:3,many", "lazy": ""}[kind]


def test_predictions_are_written_only_as_the_config_says(arguments, output):
    weights = output / "model_final.pth"
    train(setup_job(arguments("DATASETS.TEST", ())))
    assert "Next, draw its detections:\n" in (output / "log.txt").read_text()
    results = output / "inference/lvis_instances_results.json"
    opts = ("MODEL.WEIGHTS", weights, "TEST.SAVE_PREDICTIONS")
    evaluate(setup_job(arguments(*opts, False, eval_only=True)))
    assert not results.exists() and "make a report" not in (output / "log.txt").read_text()
    evaluate(setup_job(arguments(*opts, None, eval_only=True)))
    assert results.exists() and "make a report" in (output / "log.txt").read_text()


def test_report_of_a_coco_dataset(
    arguments, tiny_dataset, tmp_path, output, forget_datasets, next_command
):
    """detectron2's COCOEvaluator writes its predictions itself."""
    train(setup_job(arguments("DATASETS.TEST", ())))
    truth = as_coco(json.loads((tiny_dataset / "val.json").read_text()))
    (tmp_path / "coco.json").write_text(json.dumps(truth))
    register_coco_instances("closing_coco", {}, str(tmp_path / "coco.json"), str(tiny_dataset))
    opts = ("DATASETS.TEST", ("closing_coco",), "MODEL.WEIGHTS", output / "model_final.pth")
    evaluate(setup_job(arguments(*opts, eval_only=True)))
    words = next_command("evaluate-predictions")
    assert str(output / "inference/coco_instances_results.json") in words
    assert (output / "report/report.html").is_file()
