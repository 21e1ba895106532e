"""What a stopped training left in its folder, and trainings that meet there."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from apa_det.engine import Trainer, launch, read_job, run_folder, setup_job, train
from apa_det.engine.run_folder import claim_folder, recorded_results, truncate_metrics
from apa_det.errors import UserError

from ..conftest import locked_by_another, read_metrics

ROOT = Path(__file__).parents[2]
NO_TEST = ("DATASETS.TEST", ())


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
    """The folder of a finished training of 4 iterations with a checkpoint after each."""
    from ..conftest import training_flags

    folder = tmp_path_factory.mktemp("trained")
    opts = ("OUTPUT_DIR", folder, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 1)
    train(setup_job(training_flags(tiny_config, *opts, *NO_TEST)))
    return folder


@pytest.fixture
def folder(trained, output):
    shutil.copytree(trained, output, copy_function=link)
    return output


def link(source, target):
    """Copy a small file; checkpoints are only ever replaced, so they can be the same file."""
    (os.link if source.endswith(".pth") else shutil.copy)(source, target)


def replace(path, data):
    path.unlink()
    path.write_bytes(data)


@pytest.fixture
def resume(arguments):
    """Resume the training in the output folder; return the trainer and what it logged."""

    def run(*opts, train=True):
        opts = ("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 1, *NO_TEST, *opts)
        job = setup_job(arguments(*opts, resume=True))
        trainer = Trainer(job.config)
        trainer.resume_or_load(resume=True)
        if train:
            trainer.train()
        return trainer

    return run


def state(path):
    return torch.load(path, weights_only=True)["model"]


def content(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*") if p.is_file()}


def cut(path):
    replace(path, path.read_bytes()[:-1000])


def flip(path):
    """Change one bit of a weight."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    replace(path, data)


def empty(path):
    replace(path, b"")


def make_nan(path):
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model"]["backbone.fpn_lateral2.weight"][0, 0] = torch.nan
    path.unlink()
    torch.save(checkpoint, path)


def drop_model(path):
    path.unlink()
    torch.save({"iteration": 3}, path)


DAMAGES = [os.remove, empty, cut, flip, make_nan, drop_model]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_passed_over(folder, resume, damage):
    """The older one is taken, in a sentence that names both; the end is that of no damage."""
    expected = state(folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_0000002.pth")
    damage(folder / "model_0000002.pth")
    trainer = resume()
    assert trainer.start_iter == 2  # after model_0000001.pth; model_0000003.pth is newer: ignored
    log = (folder / "log.txt").read_text()
    sentence = r"model_0000002.pth.*\. The training continues from .*model_0000001.pth instead\."
    assert re.search(sentence, log)
    for name, value in state(folder / "model_final.pth").items():
        assert torch.equal(value, expected[name]), name


def test_no_whole_checkpoint(folder, arguments, resume, capsys):
    """All are named in one error, and nothing is trained or written over."""
    for path in folder.glob("model_*.pth"):
        cut(path)
    before = content(folder)
    with pytest.raises(UserError) as error:
        resume(train=False)
    message = str(error.value)
    assert all(f"model_{i:07d}.pth" in message for i in range(4)) and "model_final.pth" in message
    assert "give --overwrite instead of --resume to start over" in message
    after = content(folder)
    assert all(after[name] == before[name] for name in before if name.endswith(".pth"))


def test_missing_checkpoints(folder, arguments):
    for path in folder.glob("model_*.pth"):
        path.unlink()
    with pytest.raises(UserError, match="last_checkpoint names .*final.pth, which does not exist"):
        setup_job(arguments(resume=True))


def test_rollback(folder, resume):
    """By editing last_checkpoint, as people do."""
    (folder / "last_checkpoint").write_text("model_0000001.pth\n")
    assert resume(train=False).start_iter == 2


def test_checkpoint_of_another_config_is_not_passed_over(folder, arguments, resume):
    with pytest.raises(UserError, match="does not fit the model"):
        resume("MODEL.FPN.OUT_CHANNELS", 8, train=False)


@pytest.mark.parametrize("damage", [None, os.remove, cut])
def test_finished_training(folder, resume, damage):
    """It says so, writes a lost model_final.pth, and adds no line of metrics."""
    final = folder / "model_final.pth"
    expected, metrics = state(final), read_metrics(folder)
    if damage:
        damage(final)
    time = final.stat().st_mtime_ns if final.exists() else 0
    trainer = resume()
    assert trainer.start_iter == 4
    assert (final.stat().st_mtime_ns == time) == (damage is None)
    for name, value in state(final).items():
        assert torch.equal(value, expected[name]), name
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert read_metrics(folder) == metrics
    assert (
        f"The training in {folder} is finished, after 4 iterations."
        in (folder / "log.txt").read_text()
    )


def test_stopped_before_the_final_checkpoint(folder, resume):
    """The last periodic checkpoint is the final one."""
    expected = state(folder / "model_final.pth")
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    resume()
    for name, value in state(folder / "model_final.pth").items():
        assert torch.equal(value, expected[name]), name


# ------------------------------------------------------------------ new trainings


def test_new_training_refuses_a_used_folder(folder, arguments):
    """Nothing in it changes, and the folder is free again."""
    before = content(folder)
    for start in (setup_job, lambda args: train(read_job(args.config_file, args.opts))):
        with pytest.raises(UserError) as error:
            start(arguments(*NO_TEST))
        assert str(error.value) == (
            f"OUTPUT_DIR is {folder}, which has checkpoints of another training, e.g. "
            f"{folder}/model_final.pth: give --resume to continue it, --overwrite to delete it and "
            "start over, or set OUTPUT_DIR to another folder."
        )
        assert content(folder) == before
    (folder / "model_final.pth").unlink()
    for path in folder.glob("model_0*.pth"):
        path.unlink()
    with pytest.raises(UserError, match="e.g. .*/last_checkpoint: "):
        setup_job(arguments(*NO_TEST))


def test_evaluation_may_use_the_folder(folder, arguments):
    claim_folder(str(folder), key="OUTPUT_DIR", resume=True, overwrite=False)
    weights = ("MODEL.WEIGHTS", folder / "model_final.pth")
    setup_job(arguments(*weights, eval_only=True))


def test_overwrite(folder, arguments, train_net):
    """The old checkpoints and metrics go when the new training starts; other files stay."""
    (folder / "notes.txt").touch()
    (folder / "model_best.pth").touch()
    opts = ("SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 100, *NO_TEST)
    with pytest.raises(UserError):
        train_net(arguments(*opts, "SOLVER.TRAINED", ["*typo*"], overwrite=True))
    assert (folder / "model_0000003.pth").exists()
    train_net(arguments(*opts, overwrite=True))
    assert sorted(p.name for p in folder.glob("*.pth")) == ["model_final.pth"]
    assert (folder / "notes.txt").exists()
    assert [line["iteration"] for line in read_metrics(folder)] == [1]


def test_overwrite_of_the_initial_weights(folder, arguments, train_net):
    before = content(folder)
    weights = ("MODEL.WEIGHTS", folder / "model_0000001.pth")
    with pytest.raises(UserError, match="which --overwrite would delete: move it"):
        train_net(arguments(*weights, *NO_TEST, overwrite=True))
    assert all(content(folder)[n] == c for n, c in before.items() if n.endswith(".pth"))


def test_resume_and_overwrite(arguments, output):
    with pytest.raises(SystemExit):
        arguments(resume=True, overwrite=True)
    with pytest.raises(UserError, match="exclude each other"):
        train(setup_job(arguments()), resume=True, overwrite=True)


def test_folder_in_use(arguments, output, tmp_path):
    """A second training is refused before it writes anything, also with --resume."""
    with locked_by_another(output) as pid:
        for flags in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match=f"in which another training runs .*{pid}"):
                setup_job(arguments(*NO_TEST, **flags))
        assert os.listdir(output) == [".lock"]
        model = torch.nn.Linear(2, 2)
        torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
        setup_job(arguments("MODEL.WEIGHTS", tmp_path / "model.pth", eval_only=True))
    setup_job(arguments(*NO_TEST))


def test_all_processes_fail_together(tmp_path, monkeypatch):
    """Only the main one locks; the others raise its error."""
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "all_gather", lambda own: [UserError("in use"), own])
    with pytest.raises(UserError, match="in use"):
        claim_folder(str(tmp_path), key="OUTPUT_DIR", resume=False, overwrite=False)
    assert os.listdir(tmp_path) == []


def test_folder_is_free_after_an_error(arguments, output, monkeypatch):
    released = []
    monkeypatch.setattr(run_folder, "unlock_folder", released.append)
    with pytest.raises(UserError):
        setup_job(arguments("MODEL.WEIGHTS", "missing.pth"))
    job = setup_job(arguments(*NO_TEST, "SOLVER.TRAINED", ["*typo*"]))
    assert released == [str(output)]
    with pytest.raises(UserError, match="typo"):
        train(job)
    assert released == [str(output)] * 2


def test_error_of_a_command_is_one_line(folder, arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        launch.run(setup_job, arguments(*NO_TEST))
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


# ------------------------------------------------------------------ metrics.json


LINES = [
    {"iteration": 1, "total_loss": 3.0},
    {"iteration": 2, "bbox/AP": 1.0},
    {"iteration": 3, "total_loss": 2.0},
    {"iteration": 4, "bbox/AP": 2.0, "segm/APr": 3.0},
]


def write_lines(folder, lines, end="\n"):
    text = "\n".join(map(json.dumps, lines)) + end
    (folder / "metrics.json").write_text(text)


@pytest.mark.parametrize("iteration, kept", [(0, 0), (1, 0), (2, 2), (3, 2), (4, 4), (5, 4)])
def test_metrics_of_repeated_iterations_go(tmp_path, iteration, kept):
    """Results after the last iteration before the resume stay."""
    write_lines(tmp_path, LINES)
    with open(tmp_path / "metrics.json", "a") as writer:  # as that of the training
        truncate_metrics(str(tmp_path), iteration)
        writer.write('{"iteration": 9}\n')
    assert read_metrics(tmp_path) == [*LINES[:kept], {"iteration": 9}]


@pytest.mark.parametrize("end", ["", '\n{"iteration": 4, "total', "\n\0\0\0\n"])
def test_incomplete_line_goes(tmp_path, end):
    """Killed in the middle of a line; or, after a power cut, with a hole in the file."""
    write_lines(tmp_path, LINES[:2], end)
    truncate_metrics(str(tmp_path), 10)
    if "\0" not in end:
        assert read_metrics(tmp_path) == LINES[: 1 if end == "" else 2]


def test_recorded_results(tmp_path):
    assert recorded_results(str(tmp_path), 4) == {}
    write_lines(tmp_path, LINES, "\nhalf a li")
    assert recorded_results(str(tmp_path), 4) == {"bbox": {"AP": 2.0}, "segm": {"APr": 3.0}}
    assert recorded_results(str(tmp_path), 3) == recorded_results(str(tmp_path), 5) == {}
