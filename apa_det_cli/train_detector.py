"""Train a detector and evaluate it.

The flags are those of detectron2's train_net.py, for yaml configs and LazyConfigs alike. Without
CUDA, --num-gpus is the number of processes on the CPU.
"""

import argparse
import os
import sys

from .flags import add_config_file, add_overrides, command_parser


def parser(prog: str | None = None, doc: str = __doc__) -> argparse.ArgumentParser:
    result = command_parser(prog, doc)
    add_config_file(result, default="")
    folder = result.add_mutually_exclusive_group()
    folder.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in the output folder"
    )
    folder.add_argument(
        "--overwrite",
        action="store_true",
        help="start over in an output folder with checkpoints, which are deleted",
    )
    result.add_argument("--eval-only", action="store_true", help="evaluate without training")
    result.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="GPUs per machine (default 1)"
    )
    result.add_argument(
        "--num-machines", type=int, default=1, metavar="N", help="machines (default 1)"
    )
    result.add_argument(
        "--machine-rank", type=int, default=0, metavar="N", help="rank of this machine, from 0"
    )
    # detectron2's port: of the user, so that leftover processes show as a port in use
    port = 2**15 + 2**14 + hash(os.getuid() if sys.platform != "win32" else 1) % 2**14
    result.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{port}",
        metavar="URL",
        help="where the processes meet, see torch.distributed (default %(default)s)",
    )
    add_overrides(result, trailing=True)
    return result


def run(args: argparse.Namespace) -> None:
    from apa_det.engine import run as launch

    launch(main, args)


def main(args: argparse.Namespace) -> dict:
    """Run in each process of the job."""
    from apa_det.engine import evaluate, setup_job, train

    job = setup_job(args)
    if args.eval_only:
        return evaluate(job, resume=args.resume)
    return train(job, resume=args.resume, overwrite=args.overwrite)
