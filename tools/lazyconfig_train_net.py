#!/usr/bin/env python3
"""Train and evaluate detectors: tools/train_net.py by the name of detectron2's LazyConfig tool."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("train"))
