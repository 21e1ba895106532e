#!/usr/bin/env python3
"""Train and evaluate detectors, with the flags of detectron2's tools/train_net.py.

The training loop is in apa_det/engine/trainer.py, the command in apa_det_cli/train_detector.py.
"""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("train"))
