#!/usr/bin/env python3
"""Train a small APA Mask R-CNN on a generated dataset."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("quickstart"))
