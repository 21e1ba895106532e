"""The quickstart, without its training."""

import os
import shlex
from types import SimpleNamespace

import pytest

import apa_det.data
import apa_det.engine
import apa_det_cli
from apa_det_cli import quickstart as command

from ..conftest import training_flags


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], {"setup": True, "resume": False, "overwrite": True}),
        (["--resume"], {"setup": False, "resume": True, "overwrite": False}),
        (["--eval-only"], {"setup": True, "evaluate": False}),
    ],
)
def test_starts_over_by_itself(monkeypatch, tmp_path, flags, expected):
    """A second one needs no flag, whether or not the first one was finished."""
    calls = {}
    job = SimpleNamespace(output_dir=str(tmp_path), best_metric="", weights="")

    def setup_job(args):
        calls["setup"] = args.overwrite
        return SimpleNamespace(saving_predictions=lambda: job)

    monkeypatch.setattr(os, "chdir", lambda path: None)
    monkeypatch.setattr(apa_det.data, "generate_dataset", lambda folder: None)
    monkeypatch.setattr(apa_det.engine, "setup_job", setup_job)
    monkeypatch.setattr(apa_det.engine, "train", lambda job, **kwargs: calls.update(kwargs))
    evaluate = lambda job, resume: calls.update(evaluate=resume)  # noqa: E731
    monkeypatch.setattr(apa_det.engine, "evaluate", evaluate)
    monkeypatch.setattr(command, "summary", lambda *args: "")
    command.main(command.parser().parse_args(flags))
    assert calls == expected


def test_ends_with_results_and_commands_that_run(quickstart, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(apa_det.data, "generate_dataset", lambda folder: None)
    flags = training_flags(quickstart.yaml, *quickstart.opts)
    command.main(flags)
    summary = capsys.readouterr().out.partition("Done in ")[2]
    table, _, steps = summary.partition("Next:\n")
    lines = table.splitlines()
    assert lines[2].split() == ["%", "AP", "AP50", "AP75", "APr", "APc", "APf"]
    assert lines[4].startswith("boxes ") and lines[5].startswith("masks ")
    assert "vary with the machine and the seed (SEED)" in table
    commands = [shlex.split(line) for line in steps.splitlines() if line.startswith("  ")]
    assert [words[1] for words in commands] == ["evaluate-predictions", "demo", "prepare-dataset"]
    for _, *words in commands:
        assert apa_det_cli.main(words) == 0
    for name in ("report/report.html", "demo/detections.json", "advice/advice.html"):
        assert (tmp_path / "output" / name).is_file()
