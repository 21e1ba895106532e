#!/usr/bin/env python3
"""Average the weights of checkpoints."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("average-checkpoints"))
