import json

import pytest

from apa_det.engine.training_history import TrainingHistory


def write(folder, *lines):
    (folder / "metrics.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


LINES = [
    {"iteration": 1, "total_loss": 4.0, "lr": 0.1},
    {"iteration": 3, "total_loss": 3.0, "lr": 0.1, "bbox/AP": 5.0, "evaluation_time": 1.0},
    {"iteration": 2, "apa/act/lambda": 0.5},  # written after the losses of iteration 3
    {"iteration": 5, "total_loss": 2.0, "lr": 0.1},
    {"iteration": 6, "bbox/AP": 4.0, "segm/AP": 3.0, "evaluation_time": 1.0},
]


def test_iterations_are_those_finished(tmp_path):
    write(tmp_path, *LINES)
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 7, "total_l')  # of a killed process
    history = TrainingHistory.read(str(tmp_path))
    assert history.series("total_loss") == ([2, 4, 6], [4.0, 3.0, 2.0])
    assert history.series("bbox/AP") == ([4, 6], [5.0, 4.0])
    assert history.series("unknown") == ([], [])
    assert history.best("bbox/AP") == (4, 5.0) and history.best("segm/APr") is None


def test_main_metric(tmp_path):
    assert TrainingHistory.read(str(tmp_path)).main_metric() is None  # there is no file
    write(tmp_path, *LINES)
    assert TrainingHistory.read(str(tmp_path)).main_metric() == "segm/AP"
    subset = [{"iteration": i, "total_loss": 1.0, "subset/segm/AP": 2.0} for i in (1, 2)]
    write(tmp_path, *subset, *LINES[-1:])
    assert TrainingHistory.read(str(tmp_path)).main_metric() == "subset/segm/AP"
    write(tmp_path, {"iteration": 1, "a/bbox/AP": 2.0, "b/bbox/AP": 3.0, "bbox/APr": 1.0})
    assert TrainingHistory.read(str(tmp_path)).main_metric() == "a/bbox/AP"


@pytest.mark.parametrize("line", [b"[]", b"{}", b"\xff\xfe", b'{"iteration": "1"}'])
def test_other_lines_are_skipped(line, tmp_path):
    (tmp_path / "metrics.json").write_bytes(line + b"\n")
    assert TrainingHistory.read(str(tmp_path)).scalars == {}
