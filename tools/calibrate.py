#!/usr/bin/env python3
"""Fit the strength of a score calibration."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("calibrate"))
