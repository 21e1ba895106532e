"""The quickstart, without its training."""

import os
from types import SimpleNamespace

import pytest

import apa_det.data
import apa_det.engine
import apa_det.evaluation
from apa_det_cli import quickstart


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
    job = SimpleNamespace(
        test_datasets=["val"],
        output_dir=str(tmp_path),
        read_test_records=lambda name: [],
        build_test_loader=lambda records: [],
    )

    def setup_job(args):
        calls["setup"] = args.overwrite
        return job

    monkeypatch.setattr(os, "chdir", lambda path: None)
    monkeypatch.setattr(apa_det.data, "generate_dataset", lambda folder: None)
    monkeypatch.setattr(apa_det.engine, "setup_job", setup_job)
    monkeypatch.setattr(apa_det.engine, "train", lambda job, **kwargs: calls.update(kwargs))
    evaluate = lambda job, resume: calls.update(evaluate=resume)  # noqa: E731
    monkeypatch.setattr(apa_det.engine, "evaluate", evaluate)
    monkeypatch.setattr(apa_det.engine, "load_model", lambda job, resume: None)
    monkeypatch.setattr(apa_det.evaluation, "draw_detections", lambda *args: None)
    quickstart.main(quickstart.parser().parse_args(flags))
    assert calls == expected
