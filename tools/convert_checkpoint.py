#!/usr/bin/env python3
"""Convert checkpoints of other code."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("convert-checkpoint"))
