#!/usr/bin/env python3
"""Export detectors to TorchScript, ONNX or torch.export."""

import sys

from apa_det_cli import tool

if __name__ == "__main__":
    sys.exit(tool("export-model"))
