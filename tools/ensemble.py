#!/usr/bin/env python3
"""Combine the results of several detectors."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("ensemble"))
