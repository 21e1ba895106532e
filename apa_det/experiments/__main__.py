"""Train one run: ``python -m apa_det.experiments FOLDER [MODULE ...]``, see :func:`train_run`."""

import argparse

from ..engine import run
from ..engine.preemption import watch_parent
from .training import train_run


def main(args: argparse.Namespace) -> None:
    watch_parent()
    train_run(args.folder, args.imports)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="apa_det.experiments")
    parser.add_argument("folder")
    parser.add_argument("imports", nargs="*", help="modules to import first")
    parser.set_defaults(prog=parser.prog, num_gpus=1, num_machines=1)
    run(main, parser.parse_args())
