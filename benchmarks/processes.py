"""Measurements in separate processes. Imports neither torch nor detectron2, to keep them small."""

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_module(module: str, *arguments: str):
    """Run ``python -m benchmarks.<module>`` and return the JSON of its last line of output."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"The benchmark process {' '.join(command[2:4])} failed; its error is above.")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory() -> float:
    """Return the peak resident memory of this process so far, in MB."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # getrusage includes memory of the parent process
                return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes
