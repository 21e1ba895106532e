#!/usr/bin/env python3
"""Convert, check or generate datasets in LVIS format."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("prepare-dataset"))
