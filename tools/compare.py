#!/usr/bin/env python3
"""Train and compare configs with several seeds each."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("compare"))
