"""Two processes under torchrun, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import torch.distributed.fsdp
from detectron2.modeling import build_backbone
from torch import nn

from apa_det.engine import read_config
from apa_det.engine.parallel import _blocks

ROOT = Path(__file__).parents[2]
CAN_SHARD = hasattr(torch.distributed.fsdp, "fully_shard")  # torch >= 2.6


def test_two_processes(arguments, lazy_arguments, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", Path(__file__).parent / "two_processes.py"]
    lazy = lazy_arguments()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, arguments().config_file, lazy.config_file, *lazy.opts],
        env={**environment, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    checks = ("gradients", "unused", "gathers_once", "class_losses", "replay_memories")
    sharded = ("fsdp", "fsdp_overflow", "fsdp_of_lazy_config", "fsdp_is_saved_before_evaluation")
    for check in (*checks, *sharded) if CAN_SHARD else checks:
        assert done.stdout.count(f"check_{check}: ok") == 2, done.stdout + done.stderr
    # the last check ends the job: a missing gradient, which the other process would wait for
    assert done.returncode == 1
    line = "two_processes.py: 2 parameters got no gradient in this iteration, e.g. act.lambda_"
    assert line in done.stderr and "set SOLVER.FIND_UNUSED_PARAMETERS to True" in done.stderr


def test_blocks_for_fsdp(arguments):
    def names():
        all_names = {module: name for name, module in model.named_modules()}
        return [all_names[block] for block in _blocks(model)]

    model = nn.Module()
    model.backbone = build_backbone(read_config(arguments().config_file))
    blocks = [f"backbone.bottom_up.res{stage}.{i}" for stage in (2, 3, 4, 5) for i in (0, 1)]
    assert names() == blocks
    first, last = (model.get_submodule(name) for name in (blocks[0], blocks[-1]))
    first.act1.lambda_param = last.act1.lambda_param
    assert names() == blocks[1:-1]
    assert not list(_blocks(model.backbone))
