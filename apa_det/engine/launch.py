"""Launch the worker processes of a job; turn user errors into one-line exits."""

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import torch
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ..errors import UserError, report
from ..utils.known_messages import hide_known_messages
from ..utils.user_modules import import_modules
from .preemption import SIGNALS, watch_parent

Main = Callable[[argparse.Namespace], object]

_PATIENCE = 10  # seconds in which the main process reports an error that all processes meet


def run(main: Main, args: argparse.Namespace) -> None:
    """Run ``main(args)`` in as many processes as the flags ask for, or as torchrun has started.

    Under torchrun (``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE`` are set), this process is one of
    them. Otherwise several processes are started by detectron2's ``launch``. They communicate by
    NCCL, or by gloo without CUDA. Each first imports the modules in ``args.imports``.

    The process exits with status 2 and one line on stderr after a
    :class:`apa_det.errors.UserError`, and with 128 + the signal after SIGTERM, SIGINT (Ctrl-C) and
    SIGHUP, which it passes on to the processes that it has started. Any other exception keeps its
    traceback, which is also written to the job's log file.

    Args:
        main: a function defined at the top level of a module.
        args: as detectron2's ``default_argument_parser`` returns them. Optional attributes:
            ``imports`` (see :func:`apa_det.utils.user_modules.import_modules`) and ``prog``, the
            command's name in error messages.
    """
    if _under_torchrun() or args.num_gpus * args.num_machines == 1:
        _run_in_process(main, args)
        return
    relay = _Relay()
    try:
        launch(
            _run_worker,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except ProcessExitedException as error:  # the worker has reported why
        status = error.exit_code if error.exit_code >= 0 else 128 - error.exit_code
        sys.exit(128 + relay.signal if relay.signal else status)
    except KeyboardInterrupt:
        relay.terminate()
        sys.exit(130)


def _under_torchrun() -> bool:
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


class _Relay:
    """Passes signals on to the workers, as SIGTERM; a second Ctrl-C kills them.

    Workers may get Ctrl-C from the terminal too, so passing it on would be a second one.
    """

    def __init__(self):
        self.signal = 0  # the first one
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, *_) -> None:
        if number == self.signal == signal.SIGINT:
            self._kill()
        self.signal = self.signal or number
        self.terminate()

    def terminate(self) -> None:
        for process in multiprocessing.active_children():
            process.terminate()

    def _kill(self) -> NoReturn:
        for process in multiprocessing.active_children():
            process.kill()
        sys.exit(130)


def _run_worker(main: Main, args: argparse.Namespace) -> None:
    watch_parent()
    _run_in_process(main, args)


def _run_in_process(main: Main, args: argparse.Namespace) -> None:
    hide_known_messages()
    logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_traceback)
    try:
        if _under_torchrun():
            watch_parent()
            _join_torchrun(args)
        _limit_threads(args)
        import_modules(getattr(args, "imports", ()))
        main(args)
        if torch.distributed.is_initialized():
            comm.synchronize()  # no process leaves while another one still saves
            torch.distributed.destroy_process_group()
    except (Exception, KeyboardInterrupt) as error:
        rank = int(os.environ["RANK"]) if _under_torchrun() else comm.get_rank()
        if isinstance(error, UserError) and rank > 0:
            time.sleep(_PATIENCE)
        status = report(error, getattr(args, "prog", os.path.basename(sys.argv[0])))
        if status is None:
            raise
        sys.exit(status)


def _has_no_traceback(record: logging.LogRecord) -> bool:
    """Drop the traceback that detectron2's training loop logs: the error is reported once here."""
    return not record.exc_info


def _join_torchrun(args: argparse.Namespace) -> None:
    if args.num_gpus > 1 or args.num_machines > 1:
        raise UserError(
            "torchrun has started the processes: leave out --num-gpus and --num-machines, and give "
            "torchrun --nproc-per-node and --nnodes."
        )
    if "LOCAL_WORLD_SIZE" not in os.environ:
        raise UserError(
            "RANK, LOCAL_RANK and WORLD_SIZE are set, but LOCAL_WORLD_SIZE, the number of "
            "processes on this machine, is not: start the job with torchrun, or unset them."
        )
    world_size, local_size = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if world_size % local_size:
        raise UserError(
            f"{world_size} processes cannot be {local_size} on each machine: give torchrun the "
            "same --nproc-per-node on all machines."
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if local_size > torch.cuda.device_count():
            raise UserError(
                f"torchrun has started {local_size} processes on this machine, which has "
                f"{torch.cuda.device_count()} GPUs: give it --nproc-per-node gpu."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    comm.synchronize()


def _limit_threads(args: argparse.Namespace) -> None:
    """Share the cores among the processes of a job on the CPU."""
    if args.num_gpus > 1 and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, os.cpu_count() // args.num_gpus))
