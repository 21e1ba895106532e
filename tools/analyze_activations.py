#!/usr/bin/env python3
"""Show what goes into gates, activations and class scores."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("analyze-activations"))
