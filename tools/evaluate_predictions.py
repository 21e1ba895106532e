#!/usr/bin/env python3
"""Evaluate result files by LVIS's metrics."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("evaluate-predictions"))
