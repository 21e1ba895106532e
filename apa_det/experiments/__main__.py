"""Train or evaluate a run: ``python -m apa_det.experiments [--eval-only] FOLDER [MODULE ...]``."""

import argparse

from ..engine import run
from ..engine.preemption import watch_parent
from .training import evaluate_run, train_run


def main(args: argparse.Namespace) -> None:
    watch_parent()
    run_one = evaluate_run if args.eval_only else train_run
    run_one(args.folder, args.imports)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="apa_det.experiments")
    parser.add_argument("folder")
    parser.add_argument("--eval-only", action="store_true", help="train nothing")
    parser.add_argument("imports", nargs="*", help="modules to import first")
    parser.set_defaults(prog=parser.prog, num_gpus=1, num_machines=1)
    run(main, parser.parse_args())
