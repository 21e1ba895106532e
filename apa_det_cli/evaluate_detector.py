"""Evaluate a detector: the same as train --eval-only."""

import argparse

from . import train_detector

run = train_detector.run


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = train_detector.parser(prog, __doc__)
    result.set_defaults(eval_only=True)
    return result
