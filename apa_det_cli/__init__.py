"""The commands of apa_det: ``apa-det COMMAND``, and the same as ``tools/*.py``.

A package of its own, so that parsing and ``--help`` need neither torch nor detectron2. Each module
of a command has ``parser(prog)`` and ``run(args)``, which imports apa_det.
"""

import argparse
from importlib import import_module

from .runner import run_command

__all__ = ["COMMANDS", "main", "tool"]

# The module of each command
COMMANDS = {
    "train": "train_detector",
    "eval": "evaluate_detector",
    "quickstart": "quickstart",
    "pretrain": "pretrain_backbone",
    "prepare-dataset": "prepare_dataset",
    "evaluate-predictions": "evaluate_predictions",
    "compare": "compare_configs",
    "calibrate": "calibrate_scores",
    "analyze-activations": "analyze_activations",
    "average-checkpoints": "average_checkpoints",
    "convert-checkpoint": "convert_checkpoint",
    "demo": "run_demo",
    "ensemble": "ensemble",
    "export-model": "export_model",
}


def main(argv: list[str] | None = None) -> int:
    """Run ``apa-det COMMAND ...``; return the exit status."""
    summaries = (f"  {name:22}{_summary(module)}" for name, module in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="apa-det",
        usage="apa-det COMMAND ...",
        description="Train, evaluate and inspect long-tailed detectors with APA.",
        epilog="commands:\n" + "\n".join(summaries) + "\n\napa-det COMMAND --help lists its flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    prog = f"{parser.prog} {args.command}"
    return run_command(_module(COMMANDS[args.command]), args.arguments, prog)


def tool(command: str) -> int:
    """Run a command as the program ``tools/*.py`` does; return the exit status."""
    return run_command(_module(COMMANDS[command]))


def _module(name: str):
    return import_module(f".{name}", __name__)


def _summary(name: str) -> str:
    return _module(name).__doc__.partition("\n")[0]
