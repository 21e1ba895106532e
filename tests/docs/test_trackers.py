"""The recipe for experiment trackers runs as printed, with a fake wandb."""

import json
import sys
from types import SimpleNamespace

import pytest

import apa_det_cli
from apa_det.engine import WRITER_REGISTRY


class FakeWandb:
    """Keeps what its runs are given."""

    def __init__(self):
        self.runs = []

    def init(self, **kwargs):
        run = SimpleNamespace(kwargs=kwargs, logged={}, finished=0)
        run.log = lambda values, step: run.logged.setdefault(step, {}).update(values)
        run.finish = lambda: setattr(run, "finished", run.finished + 1)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    yield fake
    WRITER_REGISTRY._obj_map.pop("WandbWriter", None)
    sys.modules.pop("wandb_writer", None)


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_recipe(kind, wandb, pages, blocks, commands, quickstart, tmp_path, monkeypatch):
    page = pages["docs/trackers.md"]
    writer, subclass = blocks(page, "python")
    (tmp_path / "wandb_writer.py").write_text(writer)
    monkeypatch.chdir(tmp_path)
    printed = dict(zip(("yaml", "lazy"), commands(page), strict=True))
    program, *words = printed[kind]
    assert program == "apa-det"
    words = [getattr(quickstart, kind) if w.startswith("configs/") else w for w in words]
    options = quickstart.opts if kind == "yaml" else quickstart.lazy_opts
    assert apa_det_cli.main([*words, *options]) == 0

    (run,) = wandb.runs
    assert run.finished == 1 and run.kwargs["project"] == "apa_det"
    lines = (tmp_path / run.kwargs["dir"] / "metrics.json").read_text().splitlines()
    for line in map(json.loads, lines):
        logged = run.logged[line.pop("iteration")]
        for name in ("bbox/AP", "lr"):
            assert logged.get(name) == line.get(name)
        assert line.keys() <= logged.keys()
    assert {"total_loss", "bbox/AP"} <= {name for values in run.logged.values() for name in values}


def test_training_script(wandb, pages, blocks):
    writer, subclass = blocks(pages["docs/trackers.md"], "python")
    namespace = {"__name__": "script"}
    exec(compile(f"{writer}\n{subclass}", "script", "exec"), namespace)
    trainer = object.__new__(namespace["TrackedTrainer"])
    trainer.job = SimpleNamespace(output_dir="", writers=())
    trainer.max_iter = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apa_det.engine.trainer.default_writers", lambda *args: ["detectron2's"])
        ours = trainer.build_writers()
    assert ours[0] == "detectron2's" and isinstance(ours[1], namespace["WandbWriter"])
