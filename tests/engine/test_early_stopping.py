import pytest
import torch

from apa_det.engine import Trainer, setup_job
from apa_det.errors import UserError

from ..conftest import read_metrics

STOPPING = [
    *("SOLVER.MAX_ITER", 6, "TEST.EVAL_PERIOD", 1, "TEST.BEST_METRIC", "bbox/AP"),
    *("TEST.EARLY_STOPPING_PATIENCE", 2, "MODEL.APA.LOG_PERIOD", 0),
]


class Stop(BaseException):
    """As if the process were killed."""


@pytest.fixture
def train(arguments, monkeypatch):
    """Train with given results of the evaluations, in order; return how many were made.

    A result is a value of bbox/AP, or an error to raise.
    """

    def run(values, *opts, resume=False):
        values = list(values)
        number = len(values)

        def test(cfg, model):
            value = values.pop(0)
            if isinstance(value, BaseException):
                raise value
            return {"bbox": {"AP": value}}

        monkeypatch.setattr(Trainer, "test", staticmethod(test))
        trainer = Trainer(setup_job(arguments(*STOPPING, *opts, resume=resume)).config)
        trainer.resume_or_load(resume=resume)
        try:
            results = trainer.train()
        except Stop:
            return number - len(values)
        assert results is trainer._last_eval_results
        return number - len(values)

    return run


def final(output, name="model_final"):
    return torch.load(output / f"{name}.pth", weights_only=True)


def evaluations(output):
    lines = [line for line in read_metrics(output) if "bbox/AP" in line]
    return {line["iteration"]: line["bbox/AP"] for line in lines}


def test_stops_without_improvement(train, output):
    """The last model is evaluated once; a resume has nothing to do."""
    assert train([1.0, 5.0, 5.0, 3.0, 9.0]) == 4
    assert final(output)["iteration"] == 3
    best = final(output, "model_best")
    assert (best["iteration"], best["value"]) == (1, 5.0)
    log = (output / "log.txt").read_text()
    assert (
        "Early stopping after 4 of 6 iterations: no better bbox/AP in 2 evaluations since "
        "iteration 1. The best model is in model_best.pth."
    ) in log
    assert list(evaluations(output).items())[-1] == (4, 3.0)
    lines = read_metrics(output)
    assert train([7.0], resume=True) == 0
    assert read_metrics(output) == lines
    assert (
        f"The training in {output} is finished, after 4 iterations."
        in (output / "log.txt").read_text()
    )

    # more patience: it goes on, and stops when that is over
    assert train([4.0, 8.0, 9.0], "TEST.EARLY_STOPPING_PATIENCE", 3, resume=True) == 1
    assert final(output)["iteration"] == 4


def test_improvement_resets_the_count(train, output):
    assert train([1.0, 0.0, 2.0, 0.0, 3.0, 0.0]) == 6
    assert final(output)["iteration"] == 5
    assert "Early stopping" not in (output / "log.txt").read_text()


@pytest.mark.parametrize("killed_in", range(1, 4))
def test_killed_training_stops_at_the_same_iteration(train, output, killed_in):
    values = [1.0, 5.0, 4.0, 3.0]
    options = ("SOLVER.CHECKPOINT_PERIOD", 1)
    train([*values[:killed_in], Stop()], *options)
    assert (output / "last_checkpoint").read_text() == f"model_{killed_in:07d}.pth"
    assert train([*values[killed_in:], 9.0], *options, resume=True) == 4 - killed_in
    best = final(output, "model_best")
    assert (best["iteration"], best["value"]) == (1, 5.0)
    assert final(output)["iteration"] == 3
    assert list(evaluations(output).values()) == [*values, values[-1]]


def test_killed_in_the_last_evaluation(train, output, monkeypatch):
    """The whole test set after a stop by a subset: it is made up, and nothing is trained."""
    subset = iter([3.0, 2.0, 1.0])
    key = ("TEST.BEST_METRIC", "subset/bbox/AP", "TEST.SUBSET", 3)
    evaluate = lambda job: lambda model: {"subset/bbox/AP": next(subset)}  # noqa: E731
    monkeypatch.setattr("apa_det.engine.trainer.SubsetTest", evaluate)
    assert train([Stop()], *key) == 1
    assert final(output)["iteration"] == 2
    assert train([6.5], *key, resume=True) == 1
    assert evaluations(output)[3] == 6.5
    assert train([], *key, resume=True) == 0


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("TEST.EARLY_STOPPING_PATIENCE", -1, "PATIENCE must be an integer >= 0, got -1"),
        ("TEST.EVAL_PERIOD", 0, "set TEST.BEST_METRIC to a metric and TEST.EVAL_PERIOD to iter"),
        ("TEST.BEST_METRIC", "", "EARLY_STOPPING_PATIENCE is 2, which needs evaluations during"),
        ("SOLVER.CHECKPOINTS_KEPT", -1, "SOLVER.CHECKPOINTS_KEPT must be an integer >= 0, got -1"),
        ("SOLVER.SKIP_NONFINITE", -3, "SOLVER.SKIP_NONFINITE must be an integer >= 0, got -3"),
    ],
)
def test_invalid_settings(arguments, key, value, message):
    with pytest.raises(UserError, match=message):
        setup_job(arguments(*STOPPING, key, value))


def test_settings_of_both_formats(arguments, lazy_arguments):
    values = {"patience": 4, "checkpoints_kept": 3, "skip_nonfinite": 2, "eval_period": 5}
    yaml, lazy = setup_job(arguments()), setup_job(lazy_arguments())
    assert (yaml.patience, yaml.checkpoints_kept, yaml.skip_nonfinite) == (0, None, 0)
    assert (lazy.patience, lazy.checkpoints_kept, lazy.skip_nonfinite) == (0, 100, 0)
    for job in (yaml, lazy):
        changed = job.changed(values)
        assert {name: getattr(changed, name) for name in values} == values
    opts = ("train.early_stopping_patience=1", "train.eval_period=0")
    with pytest.raises(UserError, match="train.early_stopping_patience is 1, which needs eval"):
        setup_job(lazy_arguments(*opts))
    trainer = setup_job(lazy_arguments("train.checkpointer.max_to_keep=null")).build_trainer()
    (hook,) = (h for h in trainer._hooks if type(h).__name__ == "PeriodicCheckpointer")
    assert hook._kept is None


def test_metric_without_a_value(train, output):
    """The training is not stopped, and the log says so once."""
    nan = float("nan")
    assert train([nan] * 6) == 6
    text = "TEST.EARLY_STOPPING_PATIENCE has no effect: bbox/AP has no value yet"
    log = (output / "log.txt").read_text()
    assert log.count(text) == 1
    assert log.count("TEST.BEST_METRIC is bbox/AP, which has no value") == 1
