"""Training with several processes and machines from the command line, on the CPU."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from apa_det.engine import Trainer, evaluate, load_model, setup_job
from apa_det.engine.testing import without_nan
from apa_det.errors import UserError
from apa_det.utils.folder_lock import lock_folder

ROOT = Path(__file__).parents[2]
TRAIN_NET = ROOT / "tools/train_net.py"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture
def start():
    """Start Python processes, and kill those that are left at the end."""
    processes = []

    def popen(*command):
        command = [sys.executable, *map(str, command)]
        pipe = subprocess.PIPE
        pipes = {"stdout": pipe, "stderr": pipe, "text": True}
        process = subprocess.Popen(command, env=ENVIRONMENT, preexec_fn=no_signal_ignored, **pipes)
        processes.append(process)
        return process

    yield popen
    for process in processes:
        process.kill()


def no_signal_ignored():
    """Tests may run under nohup or in the background."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def final_metrics(output):
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    return {k: v for k, v in last.items() if k.startswith(("bbox/", "segm/"))}


def detections(output):
    found = json.loads((output / "inference/lvis_instances_results.json").read_text())
    return sorted(found, key=json.dumps)


def wait(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out[-8000:] + err[-8000:]


def preempt(process, output, number=signal.SIGTERM):
    """Send a signal once there is a checkpoint; return exit status, last checkpoint and output.

    The process that gets the signal passes it on to those that it has started.
    """
    last = output / "last_checkpoint"
    deadline = time.monotonic() + 200
    while not last.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(number)
    code, text = wait(process)
    if number != signal.SIGKILL:
        assert "SIGTERM: saving a checkpoint" in (output / "log.txt").read_text(), text
    return code, output / last.read_text(), text


def test_preempted_and_resumed_on_two_machines(start, arguments, output):
    """With FSDP, EMA, AMP and gradient accumulation; ended by SIGTERM, resumed by torchrun."""
    config = ("--config-file", arguments().config_file)
    options = [
        *("SOLVER.FSDP", True, "SOLVER.EMA.ENABLED", True, "SOLVER.AMP.ENABLED", True),
        *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATE", 2, "SOLVER.CHECKPOINT_PERIOD", 2),
        *("TEST.BEST_METRIC", "bbox/AP50", "TEST.DETECTIONS_PER_IMAGE", 100, "FIGURES", True),
    ]
    launched = start(
        *(TRAIN_NET, *config, "--num-gpus", 2, "--dist-url", "auto", *options),
        *("SOLVER.MAX_ITER", 10_000),
    )
    code, checkpoint, text = preempt(launched, output)
    assert code == 143, text
    done = int(checkpoint.stem.removeprefix("model_")) + 1
    saved = torch.load(checkpoint, weights_only=True)
    assert not any(hasattr(t, "full_tensor") for t in saved["model"].values())
    assert saved["ema"]["n_averaged"] == done

    port = free_port()
    machines = [
        start(
            *("-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1),
            *("--node-rank", rank, "--master-addr", "127.0.0.1", "--master-port", port),
            *(TRAIN_NET, *config, "--resume", *options, "SOLVER.MAX_ITER", done + 3),
        )
        for rank in range(2)
    ]
    for machine in machines:
        code, text = wait(machine)
        assert code == 0, text
    log = (output / "log.txt").read_text()
    assert f"Starting training from iteration {done}" in log
    assert log.count("Best bbox/AP50: ") == 1  # the main process alone
    for name in ("results.png", "val_predictions.png", "train_batch.png", "labels.png"):
        assert (output / name).stat().st_size > 0
    final = torch.load(output / "model_final.pth", weights_only=True)
    assert final["ema"]["n_averaged"] == done + 3
    assert any(
        "apa/backbone.bottom_up.stem.act/kappa" in line for line in open(output / "metrics.json")
    )

    # a single process can load its checkpoints
    averaged = ("SOLVER.EMA.ENABLED", True, "TEST.DETECTIONS_PER_IMAGE", 100)
    weights = ("MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", output / "one")
    job = setup_job(arguments(*averaged, *weights, eval_only=True))
    model = load_model(job)
    results = without_nan(job.test(model))
    assert results == pytest.approx(final_metrics(output), abs=1e-6)
    best = torch.load(output / "model_best.pth", weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, best["model"][name]), name
    trainer = Trainer(setup_job(arguments("SOLVER.EMA.ENABLED", True, resume=True)).config)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == done + 3


def test_preempted_under_torchrun(start, arguments, output):
    launched = start(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2),
        *(TRAIN_NET, "--config-file", arguments().config_file, "--resume"),
        *("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 10_000, "DATALOADER.NUM_WORKERS", 1),
    )
    _, checkpoint, _ = preempt(launched, output)  # torchrun sets the exit status
    assert "World size: 2" in (output / "log.txt").read_text()
    trainer = Trainer(setup_job(arguments(resume=True)).config)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == int(checkpoint.stem.removeprefix("model_")) + 1


def test_end_of_the_launcher(start, arguments, output):
    """Ctrl-C saves and exits with 130; after a kill, the workers save and train no longer."""
    command = [
        *(TRAIN_NET, "--config-file", arguments().config_file, "--num-gpus", 2),
        *("--dist-url", "auto", "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 10_000),
        *("DATALOADER.NUM_WORKERS", 1),
    ]
    code, _, text = preempt(start(*command), output, signal.SIGINT)
    assert code == 130, text
    shutil.rmtree(output)
    preempt(start(*command), output, signal.SIGKILL)
    deadline = time.monotonic() + 100
    while True:
        try:
            assert lock_folder(str(output), "OUTPUT_DIR")
            break
        except UserError:
            assert time.monotonic() < deadline, (output / "log.txt").read_text()
            time.sleep(0.2)
    assert re.search("SIG(INT|TERM): saving a checkpoint", (output / "log.txt").read_text())
    assert (output / (output / "last_checkpoint").read_text()).exists()


def test_two_machines_evaluate_as_one(start, arguments, output):
    save = ("TEST.DETECTIONS_PER_IMAGE", 100, "TEST.SAVE_PREDICTIONS", True)
    address = ("--num-machines", 2, "--dist-url", f"tcp://127.0.0.1:{free_port()}")
    machines = [
        start(
            *(TRAIN_NET, "--config-file", arguments().config_file, *address),
            *("--machine-rank", rank, *save, "TEST.BEST_METRIC", "segm/AP"),
        )
        for rank in range(2)
    ]
    for machine in machines:
        code, text = wait(machine)
        assert code == 0, text
    assert "World size: 2" in (output / "log.txt").read_text()
    weights = ("MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", output / "one")
    results = evaluate(setup_job(arguments(*weights, *save, eval_only=True)))
    assert without_nan(results) == final_metrics(output)
    assert any(value > 0 for value in final_metrics(output).values())
    assert detections(output / "one") == detections(output)
    assert (output / "model_best.pth").exists()
