#!/usr/bin/env python
"""Kill trainings, resume them, and compare their ends with those of undisturbed ones.

Each row is a small training on the CPU. Its process is killed (SIGKILL) again and again, at a
random moment or before or after a random write, and resumed, until --kills of them fell between its
first and its last checkpoint. The row passes if each training that was resumed to its end has the
bytes of the undisturbed one in all tensors, the same numbers in its checkpoints and the same
results of all evaluations.

With --leave-out, one of the things that a resumed training restores is left out in all processes;
then the rows that need it must fail.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from detectron2.engine import HookBase
from kill_rows import ITERATIONS, LEFT_OUT, ROWS, TINY, Row

from apa_det.data import generate_dataset
from apa_det.engine import run, setup_job, train
from apa_det.engine.trainer import JobTrainer
from apa_det_cli import compare_configs, train_detector

LAZY = Path(__file__).parents[1] / "configs/Quickstart/mask_rcnn_R_18_FPN_APA.py"


# ------------------------------------------------------------------ one training in this process
def prepare(folder: Path) -> None:
    """Generate the dataset and write the yaml config."""
    generate_dataset(folder / "data", num_train=24, num_val=8, num_classes=4, image_size=64)
    (folder / "tiny.yaml").write_text(TINY)


def datasets(folder: Path) -> list[list[str]]:
    """Return the entries of ``DATASETS.LVIS_FORMAT``."""
    data = folder / "data"
    return [[f"kill_{s}", f"{data}/{s}.json", str(data)] for s in ("train", "val")]


def flags(row: Row, folder: Path, output: Path, seed: int | None, *, resume: bool) -> list[str]:
    """Return the flags of ``apa-det train``."""
    sets = datasets(folder)
    if row.kind == "lazy":
        config = LAZY
        values = {
            "train.device": "cpu",
            "train.output_dir": output,
            "train.max_iter": ITERATIONS,
            "train.seed": 3,
            "train.eval_period": 4,
            "train.best_metric": "bbox/AP",
            "train.checkpointer.period": 2,
            "train.checkpointer.max_to_keep": 3,
            "dataloader.lvis_format": sets,
            "dataloader.train.dataset.names": "kill_train",
            "dataloader.train.total_batch_size": 2,
            "dataloader.train.mapper.augmentations.0.short_edge_length": [48, 64],
            "dataloader.test.dataset.names": "kill_val",
            "dataloader.test.mapper.augmentations.0.short_edge_length": 64,
            "model.roi_heads.num_classes": 4,
            "model.proposal_generator.post_nms_topk": [30, 30],
        }
        opts = [f"{key}={value}" for key, value in values.items()]
    else:
        config = folder / "tiny.yaml"
        opts = ["OUTPUT_DIR", output, "DATASETS.LVIS_FORMAT", sets, "SOLVER.MAX_ITER", ITERATIONS]
        opts += [*row.opts, *(() if seed is None else ("SEED", seed))]
    given = ["--config-file", config, *["--resume"] * resume, "--opts", *opts]
    return [str(x) for x in given]


def train_row(row: Row, folder: Path, output: Path, seed: int | None, *, resume: bool) -> None:
    """Train in this process."""
    if row.kind == "compare":
        opts = ("DATASETS.LVIS_FORMAT", datasets(folder), "SOLVER.MAX_ITER", ITERATIONS)
        given = ["--output", output, "--config-file", folder / "tiny.yaml", "--seeds", 1, 2]
        args = compare_configs.parser().parse_args([*map(str, [*given, "--opts", *opts])])
        if compare_configs.run(args):
            raise SystemExit("A run of the comparison has failed.")
        return
    args = train_detector.parser().parse_args(flags(row, folder, output, seed, resume=resume))
    run(_train, args)


def _train(args: argparse.Namespace) -> None:
    train(setup_job(args), resume=args.resume)


# ------------------------------------------------------------------ processes and kills
class Kill(NamedTuple):
    """When to kill a training: in an iteration after a number of events, or at a write."""

    events: int  # iterations or writes before it
    at_write: bool
    after: bool  # after the write
    delay: float  # seconds, for a kill at a random moment


class _Event(HookBase):
    """Tells the parent process of each iteration."""

    def __init__(self, pipe: int):
        self._pipe = pipe

    def before_step(self) -> None:
        os.write(self._pipe, b".")


def start(body: Callable[[], None], log: Path, kill: Kill | None) -> tuple[int, int]:
    """Fork a process; return its id and the pipe that has a byte for each iteration."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 1
    try:
        os.setpgid(0, 0)
        os.close(reader)
        with open(log, "ab", 0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if kill is not None and kill.at_write:
            _die_at_write(kill)
        build = JobTrainer.build_hooks
        with mock.patch.object(
            JobTrainer, "build_hooks", lambda self: [_Event(writer), *build(self)]
        ):
            body()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status or 0)


def _die_at_write(kill: Kill) -> None:
    left = kill.events

    def dying(call: Callable) -> Callable:
        def write(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0 and not kill.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*args, **kwargs)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return write

    for name in ("fsync", "replace", "remove", "truncate"):
        setattr(os, name, dying(getattr(os, name)))


def run_once(
    row: Row, folder: Path, output: Path, seed: int | None, *, resume: bool, kill: Kill | None
) -> int:
    """Train in new processes; return the exit status, or minus the signal that ended it."""
    log = output.with_suffix(".txt")
    environment = [{}]
    if row.processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": row.processes, "LOCAL_WORLD_SIZE": row.processes}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "1"}
        environment = [{**shared, "RANK": r, "LOCAL_RANK": r} for r in range(row.processes)]
    children = []
    for rank, variables in enumerate(environment):

        def body(variables: dict = variables) -> None:
            os.environ.update({name: str(value) for name, value in variables.items()})
            train_row(row, folder, output, seed, resume=resume)

        children.append(start(body, log, kill if rank == 0 else None))
    pid, pipe = children[0]
    if kill is not None and not kill.at_write:
        while row.kind == "compare" and not is_between(output) and _is_running(pid):
            time.sleep(0.01)
        for _ in range(kill.events):
            select.select([pipe], [], [])
            if not os.read(pipe, 1):
                break
        time.sleep(kill.delay)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pipe)
    for other, its_pipe in children[1:]:
        if status:
            with suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        os.close(its_pipe)
    if status < 0 and row.kind == "compare":
        _end_runs(output, killed=kill.after)
    return status


def is_between(output: Path) -> bool:
    """Return whether a training is between its first and its last checkpoint."""
    folders = (path.parent for path in output.rglob("last_checkpoint"))
    return any(not (folder / "model_final.pth").exists() for folder in folders)


def _is_running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _end_runs(output: Path, *, killed: bool) -> None:
    """Wait until the trainings of a killed comparison have ended; they must end by themselves.

    Args:
        output: the folder of the comparison.
        killed: kill them too.
    """
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if not (pids := [*_processes(output)]):
            return
        for pid in pids if killed else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    raise SystemExit("A training of a killed comparison has not ended.")


def _processes(output: Path) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if f"{output}/".encode() in path.read_bytes():
                yield int(path.parent.name)


# ------------------------------------------------------------------ what a training has written
def state_of(output: Path) -> dict[str, object]:
    """Return all that must be equal: tensors and numbers of checkpoints, results of evaluations."""
    state: dict[str, object] = {}
    for path in sorted([*output.rglob("model_final.pth"), *output.rglob("model_best.pth")]):
        name = str(path.relative_to(output))
        checkpoint = torch.load(path, weights_only=False)
        state |= dict(_leaves(checkpoint, name))
    for path in sorted(output.rglob("metrics.json")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in filter(lambda line: "evaluation_time" in line or "bbox/AP" in line, lines):
            for metric, value in line.items():
                if metric.startswith(("bbox/", "segm/")):
                    state[f"{path.relative_to(output)} {line['iteration']} {metric}"] = value
    if (output / "table.md").exists():
        numbers = json.loads((output / "results.json").read_text())["numbers"]
        accuracy = [number for number in numbers if number["iou_type"]]  # the others are costs
        state |= dict(_leaves(accuracy, "results.json"))
    return state


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if "CostMeter" in name:
        return
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{name}[{i}]")
    elif isinstance(value, torch.Tensor):
        yield name, value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    else:
        yield name, value


def differences(expected: dict, state: dict) -> list[str]:
    """Return the names of what differs; NaN equals NaN."""
    names = sorted(expected.keys() | state.keys())
    missing = object()
    pairs = ((n, expected.get(n, missing), state.get(n, missing)) for n in names)
    return [n for n, a, b in pairs if not (a == b or (a != a and b != b))]


# ------------------------------------------------------------------ a row
def test_row(name: str, folder: Path, kills: int, generator: random.Random) -> tuple[int, str]:
    """Return the number of kills between checkpoints, and what went wrong ("" if nothing)."""
    row = ROWS[name]
    draws_seed = "SEED" in row.opts
    expected = None if draws_seed else undisturbed(row, folder, None)
    counted = trial = 0
    while counted < kills:
        output = folder / f"run_{trial}"
        trial += 1
        found, fault = killed_training(row, folder, output, generator)
        counted += found
        if fault:
            return counted, f"{fault}; see {output}.txt"
        if draws_seed:
            checkpoint = torch.load(output / "model_final.pth", weights_only=False)
            expected = undisturbed(row, folder, checkpoint["trainer"]["seed"])
        if different := differences(expected, state_of(output)):
            return counted, f"{len(different)} differ, e.g. {different[0]}; see {output}"
        shutil.rmtree(output)
    return counted, ""


def undisturbed(row: Row, folder: Path, seed: int | None) -> dict[str, object]:
    """Return the state of a training that is not killed."""
    output = folder / "undisturbed"
    shutil.rmtree(output, ignore_errors=True)
    if status := run_once(row, folder, output, seed, resume=False, kill=None):
        raise SystemExit(f"The undisturbed training has failed ({status}): see {output}.txt")
    return state_of(output)


def killed_training(
    row: Row, folder: Path, output: Path, generator: random.Random
) -> tuple[int, str]:
    """Train with kills to the end; return how many count, and what went wrong."""
    counted = 0
    for attempt in range(200):
        has_checkpoint = any(output.rglob("last_checkpoint"))
        at_write = row.kind != "compare" and generator.random() < 0.5
        events = generator.randint(1, 24 if at_write else 4)
        delay = generator.uniform(0, 1.5 if row.kind == "compare" else 0.6)
        kill = Kill(events, at_write, generator.random() < 0.5, delay)
        if row.kind == "compare":
            kill = kill._replace(events=0)
        resume = attempt > 0
        status = run_once(row, folder, output, None, resume=resume, kill=kill)
        if status == 0:
            return counted, ""
        if status != -signal.SIGKILL:
            return counted, f"exit status {status} after {attempt} kills"
        counted += is_between(output) if row.kind == "compare" else has_checkpoint
    return counted, "no end after 200 kills"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS], metavar="ROW")
    parser.add_argument("--kills", type=int, default=15, metavar="N", help="for each row (15)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the kills (0)")
    parser.add_argument(
        "--leave-out", nargs="+", choices=["all", *LEFT_OUT], default=[], metavar="THING"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    things = [*LEFT_OUT] if "all" in args.leave_out else args.leave_out
    jobs = [(LEFT_OUT[thing][0], thing) for thing in things] or [(row, "") for row in args.rows]
    folder = Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    pid = os.fork()  # this process starts no threads, as it is forked for each training
    if not pid:
        prepare(folder)
        os._exit(0)
    os.waitpid(pid, 0)
    total = failed = 0
    for number, (name, thing) in enumerate(jobs):
        place = folder / str(number)
        place.mkdir()
        for file in ("data", "tiny.yaml"):
            (place / file).symlink_to(folder / file)
        begin = time.monotonic()
        with ExitStack() as stack:
            if thing:
                stack.enter_context(LEFT_OUT[thing][1]())
            counted, fault = test_row(name, place, args.kills, random.Random(args.seed))
        total += counted
        bad = not fault if thing else bool(fault)
        failed += bad
        title = f"{name}, without {thing}" if thing else name
        outcome = fault or "identical"
        seconds = time.monotonic() - begin
        mark = "FAILED" if bad else "ok"
        print(f"{mark:6} {title:45} {counted:3} kills {seconds:5.0f} s  {outcome}", flush=True)
        if not bad:
            shutil.rmtree(place)
    print(f"{total} kills, {failed} of {len(jobs)} failed")
    if not failed:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
