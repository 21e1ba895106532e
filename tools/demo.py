#!/usr/bin/env python3
"""Detect in images or videos."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("demo"))
