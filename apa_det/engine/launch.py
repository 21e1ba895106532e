"""The start of the processes of a job, and their end where the user has to mend something."""

import argparse
import os
import sys
import time
from collections.abc import Callable
from traceback import walk_tb

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

__all__ = ["run"]


def run(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in as many processes as the flags ask for.

    It is detectron2's ``launch`` (NCCL, or gloo where there is no CUDA), and exits with one line
    where apa_det itself raised a ValueError, FileNotFoundError or ImportError: such an error is the
    user's to mend. Any other one keeps its traceback.

    Args:
        main: a function of a module's top level.
        args: as detectron2's ``default_argument_parser`` gives them.
    """
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
        sys.exit(error.exit_code)


def _run_in_process(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    if args.num_gpus > 1 and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, os.cpu_count() // args.num_gpus))
    try:
        main(args)
    except (ValueError, FileNotFoundError, ImportError) as error:
        if not _raised_by_apa_det(error):
            raise
        if not comm.is_main_process():
            time.sleep(
                10
            )  # the main process found the same and speaks for all, which ends this one
        sys.exit(f"error: {error}")


def _raised_by_apa_det(error: Exception) -> bool:
    *_, (frame, _) = walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").startswith("apa_det.")
