"""The start of the processes of a job, and their end where the user has to mend something."""

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from traceback import walk_tb

import torch
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

__all__ = ["run"]


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in as many processes as the flags ask for, or as torchrun has started.

    Under torchrun (``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE`` are set), this process is one of
    them. Else it is detectron2's ``launch``. Either way the processes talk by NCCL, or by gloo
    where there is no CUDA. Exits with one line where apa_det itself raised a ValueError,
    FileNotFoundError or ImportError: such an error is the user's to mend. Any other one keeps its
    traceback.

    Args:
        main: a function of a module's top level.
        args: as detectron2's ``default_argument_parser`` gives them.
    """
    if _under_torchrun():
        _run_in_process(partial(_join_torchrun, main), args)
        return
    if args.num_gpus * args.num_machines > 1:
        signal.signal(signal.SIGTERM, _pass_on)
    try:
        launch(
            _run_in_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
        )
    except ProcessExitedException as error:  # the process has said why
        sys.exit(error.exit_code if error.exit_code >= 0 else 128 - error.exit_code)


def _under_torchrun() -> bool:
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def _pass_on(*_) -> None:
    for process in multiprocessing.active_children():
        process.terminate()


def _join_torchrun(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    if args.num_gpus > 1 or args.num_machines > 1:
        raise ValueError(
            "torchrun has started the processes: leave out --num-gpus and --num-machines, and give "
            "torchrun --nproc-per-node and --nnodes."
        )
    if "LOCAL_WORLD_SIZE" not in os.environ:
        raise ValueError(
            "RANK, LOCAL_RANK and WORLD_SIZE are set, but LOCAL_WORLD_SIZE, the number of "
            "processes on this machine, is not: start the job with torchrun, or unset them."
        )
    world_size, local_size = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if world_size % local_size:
        raise ValueError(
            f"{world_size} processes are not {local_size} on each machine: give torchrun the same "
            "--nproc-per-node on all machines."
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if local_size > torch.cuda.device_count():
            raise ValueError(
                f"torchrun has started {local_size} processes on this machine, which has "
                f"{torch.cuda.device_count()} GPUs: give it --nproc-per-node gpu."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    comm.synchronize()
    main(args)


def _run_in_process(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    if args.num_gpus > 1 and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, os.cpu_count() // args.num_gpus))
    try:
        main(args)
        if torch.distributed.is_initialized():
            comm.synchronize()  # none leaves while another one still saves
            torch.distributed.destroy_process_group()
    except (ValueError, FileNotFoundError, ImportError) as error:
        if not _raised_by_apa_det(error):
            raise
        rank = int(os.environ["RANK"]) if _under_torchrun() else comm.get_rank()
        if rank > 0:  # the main process found the same and speaks for all, which ends this one
            time.sleep(10)
        sys.exit(f"error: {error}")


def _raised_by_apa_det(error: Exception) -> bool:
    *_, (frame, _) = walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("apa_det.")
