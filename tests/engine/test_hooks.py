import pytest
import torch
from detectron2.engine import EvalHook, SimpleTrainer, hooks
from detectron2.utils.events import CommonMetricPrinter, JSONWriter

from apa_det.activation import AGLU, APA
from apa_det.engine import BestCheckpointer, LambdaKappaWriter

from ..conftest import read_metrics


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.act = AGLU()
        self.gate = APA(4)

    def forward(self, data):
        return {"loss": self.gate(self.act(data)).mean()}


def make_trainer(tmp_path, added, max_iter, period=1):
    model = Model()
    data = [torch.ones(2, 4, 1, 1)] * 100
    trainer = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1))
    writers = [CommonMetricPrinter(max_iter), JSONWriter(str(tmp_path / "metrics.json"))]
    trainer.register_hooks([*added(model), hooks.PeriodicWriter(writers, period)])
    return trainer


def test_lambda_and_kappa_are_written_every_period(tmp_path, caplog):
    trainer = make_trainer(tmp_path, lambda model: [LambdaKappaWriter(model, 2)], 5)
    with torch.no_grad():
        trainer.model.act.lambda_param.fill_(-1)  # below the clamp
        trainer.model.gate.kappa_param.copy_(torch.tensor([1.0, 2, 3, 6]).view(1, 4, 1, 1))
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    with caplog.at_level("INFO"):
        trainer.train(0, 5)

    written = [line for line in read_metrics(tmp_path) if "apa/act/lambda" in line]
    assert [line["iteration"] for line in written] == [1, 3, 4]
    assert written[0]["apa/act/lambda"] == pytest.approx(1e-4)
    assert written[0]["apa/act/kappa"] == pytest.approx(trainer.model.act.kappa_param.item())
    kappa = {k: v for k, v in written[0].items() if k.startswith("apa/gate/kappa")}
    assert kappa == {"apa/gate/kappa/mean": 3, "apa/gate/kappa/min": 1, "apa/gate/kappa/max": 6}
    assert "apa/" not in caplog.text


def test_names_with_distributed_training(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        hook = LambdaKappaWriter(torch.nn.parallel.DistributedDataParallel(Model()), 1)
    finally:
        torch.distributed.destroy_process_group()
    assert set(hook._scalars()) >= {"apa/act/lambda", "apa/act/kappa", "apa/gate/lambda/max"}


def evaluating(values, output_dir, metric="bbox/APr"):
    """Return an EvalHook with the given values in order, and the hook under test."""
    values = iter(values)

    def evaluate():
        return {"bbox": {"APr": next(values)}}

    return lambda model: [
        EvalHook(1, evaluate),
        BestCheckpointer(1, model, str(output_dir), metric),
    ]


def best(tmp_path):
    return torch.load(tmp_path / "model_best.pth", weights_only=True)


def test_best_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, evaluating([float("nan"), 3, 5, 4], tmp_path), 4)
    states = []
    trainer.register_hooks(
        [hooks.CallbackHook(after_step=lambda t: states.append(t.model.act.kappa_param.item()))]
    )
    trainer.train(0, 4)
    saved = best(tmp_path)
    assert saved["metric"] == "bbox/APr" and saved["value"] == 5
    assert saved["model"]["act.kappa_param"].item() == states[2]
    assert not (tmp_path / "last_checkpoint").exists()


def test_best_checkpoint_of_a_resumed_training(tmp_path):
    make_trainer(tmp_path, evaluating([3, 5], tmp_path), 2).train(0, 2)
    make_trainer(tmp_path, evaluating([4, 4.5], tmp_path), 4).train(2, 4)
    assert best(tmp_path)["value"] == 5
    make_trainer(tmp_path, evaluating([6], tmp_path), 5).train(4, 5)
    assert best(tmp_path)["value"] == 6
    make_trainer(tmp_path, evaluating([1], tmp_path), 1).train(0, 1)  # a new training
    assert best(tmp_path)["value"] == 1


def test_truncated_best_checkpoint(tmp_path):
    (tmp_path / "model_best.pth").write_bytes(b"half a file")
    make_trainer(tmp_path, evaluating([2], tmp_path), 2).train(1, 2)
    assert best(tmp_path)["value"] == 2


def test_missing_metric(tmp_path, caplog):
    make_trainer(tmp_path, evaluating([1, 2], tmp_path, "segm/AP"), 2).train(0, 2)
    assert not (tmp_path / "model_best.pth").exists()
    assert caplog.text.count("metric is segm/AP, which has no value: the evaluation does") == 1


@pytest.mark.parametrize(
    "metric, what",
    [
        ("APr", "object of a rare class"),
        ("APf_fixed", "object of a frequent class"),
        ("APl", "large object"),
        ("ARnight@300", "object of a class of the group night"),
        ("AP_pool", "object to evaluate"),
    ],
)
def test_metric_without_ground_truth(tmp_path, caplog, metric, what):
    """One warning says which metric is NaN, why, and what to set."""

    def hooks_of(model):
        results = {"bbox": {"AP": 1.0, "APc": 2.0, "AP-cat": 1.0, metric: float("nan")}}
        best = BestCheckpointer(1, model, str(tmp_path), f"bbox/{metric}", key="TEST.BEST_METRIC")
        return [EvalHook(1, lambda: results), best]

    make_trainer(tmp_path, hooks_of, 3).train(0, 3)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning == (
        f"TEST.BEST_METRIC is bbox/{metric}, which is NaN because the test set has no {what}: "
        "model_best.pth is not saved. Set TEST.BEST_METRIC to one of 'bbox/AP', 'bbox/APc', or "
        "use a test set that has them."
    )
    assert not (tmp_path / "model_best.pth").exists()


@pytest.mark.parametrize(
    "change",
    [{"value": "5"}, {"value": None}, {"value": float("nan")}, {"iteration": "1"}],
)
def test_invalid_best_checkpoint(change, tmp_path, caplog):
    caplog.set_level("WARNING")
    saved = {"metric": "bbox/APr", "value": 9.0, "iteration": 0, **change}
    torch.save({"model": {}, **saved}, tmp_path / "model_best.pth")
    make_trainer(tmp_path, evaluating([2], tmp_path), 2).train(1, 2)
    assert f"model_best.pth: {next(iter(change))} must be" in caplog.text
    assert "The next evaluation replaces this file." in caplog.text
    assert best(tmp_path)["value"] == 2
