#!/usr/bin/env python3
"""Pretrain a backbone as an image classifier."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("pretrain"))
