"""The averaged weights, against the average by hand."""

import copy

import torch
from detectron2.engine import HookBase
from torch import nn

from apa_det import AGLU
from apa_det.engine import Trainer, load_model, setup_job
from apa_det.engine.ema import averaged_state, build_ema
from apa_det.engine.testing import without_nan


def test_average():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), AGLU(), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[3].bias = model[0].bias  # tied
    ema = build_ema(model, decay=0.5)
    expected = None
    for n in range(20):
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 10)
        ema.update_parameters(model)
        now = {name: p.detach().double() for name, p in model.named_parameters()}
        keep = min(0.5, (1 + n) / (10 + n))
        expected = {
            name: keep * expected[name] + (1 - keep) * value if expected else value
            for name, value in now.items()
        }
    state = averaged_state(ema.state_dict())
    assert state.keys() == model.state_dict().keys()
    assert {state[name].dtype for name in expected} == {torch.float32}
    for name, value in expected.items():
        torch.testing.assert_close(state[name].double(), value, rtol=1e-5, atol=1e-5)
    for name in ("2.running_mean", "2.running_var", "2.num_batches_tracked"):
        assert torch.equal(state[name], model.state_dict()[name])
    assert ema.module[3].bias is ema.module[0].bias


class Recorder(HookBase):
    """Records the trained and the averaged weights of every iteration."""

    def __init__(self):
        self.trained, self.averaged = [], []

    def after_step(self):
        self.trained.append(copy.deepcopy(self.trainer.model.state_dict()))
        self.averaged.append(averaged_state(copy.deepcopy(self.trainer.ema.state_dict())))


def equal(state, expected):
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], value) for name, value in expected.items()
    )


def test_evaluated_saved_and_resumed(arguments, output):
    ema = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.9, "SOLVER.AMP.ENABLED", True)
    options = [
        *("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.BASE_LR", 0.05),
        *("TEST.SUBSET", 3, "TEST.EVAL_PERIOD", 2, "TEST.BEST_METRIC", "subset/bbox/AP50"),
    ]
    trainer = Trainer(setup_job(arguments(*options, *ema)).config)
    recorder = Recorder()
    trainer.register_hooks([recorder])
    trainer.resume_or_load(resume=False)
    trainer.train()
    trained, averaged = recorder.trained[-1], recorder.averaged[-1]
    assert not equal(trained, averaged)
    assert {t.dtype for name, t in averaged.items() if "num_batches" not in name} == {torch.float32}

    best = torch.load(output / "model_best.pth", weights_only=True)
    assert equal(best["model"], recorder.averaged[min(best["iteration"], 3)])
    final = torch.load(output / "model_final.pth", weights_only=True)
    assert equal(final["model"], trained)
    assert equal(averaged_state(final["ema"]), averaged)

    # --eval-only: the averaged weights, and the results of the end of training
    weights = ("MODEL.WEIGHTS", output / "model_final.pth")
    job = setup_job(arguments(*options, *ema, *weights, eval_only=True))
    model = load_model(job)
    assert equal(model.state_dict(), averaged)
    assert without_nan(job.test(model)) == without_nan(trainer._last_eval_results)
    model = load_model(setup_job(arguments(*options, *weights, eval_only=True)))
    assert equal(model.state_dict(), trained)
    best = ("MODEL.WEIGHTS", output / "model_best.pth")
    model = load_model(setup_job(arguments(*options, *ema, *best, eval_only=True)))
    assert equal(model.state_dict(), recorder.averaged[min(torch.load(best[1])["iteration"], 3)])
    log = (output / "log.txt").read_text()
    assert log.count("model_final.pth: loading its averaged weights (SOLVER.EMA.ENABLED)") == 1
    assert log.count("model_best.pth: loading its weights, as it has no averaged ones (SOL") == 1

    resumed = Trainer(setup_job(arguments(*options, *ema, resume=True)).config)
    resumed.resume_or_load(resume=True)
    assert resumed.ema.n_averaged == 4
    assert equal(averaged_state(resumed.ema.state_dict()), averaged)


def test_resumed_from_a_checkpoint_without_average(arguments, output):
    no_test = ("DATASETS.TEST", ())
    trainer = Trainer(setup_job(arguments("SOLVER.MAX_ITER", 1, *no_test)).config)
    trainer.train()
    options = ("SOLVER.MAX_ITER", 2, "SOLVER.EMA.ENABLED", True, *no_test)
    trainer = Trainer(setup_job(arguments(*options, resume=True)).config)
    trainer.resume_or_load(resume=True)
    assert "model_final.pth has no averaged weights" in (output / "log.txt").read_text()
    trainer.train()
    assert equal(averaged_state(trainer.ema.state_dict()), trainer.model.state_dict())
