"""Check apa_det on one device within minutes: first that it is correct, then how fast it is.

    python -m benchmarks.gpu_check                 # on the GPU, or in a small form on the CPU
    python -m benchmarks.gpu_check --only sizes step --json out.json

Needs torch, detectron2, Triton and this checkout, and no network: all data is generated. Each
section runs in its own process; one that fails is recorded with its traceback, and the others go
on. Exits with 1 if a check of correctness failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __package__ in (None, ""):  # run as a file
    sys.path[0] = str(ROOT)

import torch  # noqa: E402
from tabulate import tabulate  # noqa: E402

from benchmarks.common import device_name  # noqa: E402
from benchmarks.gpu_report import Report  # noqa: E402

BUDGET = 570.0  # seconds
MIN_SECONDS = 5.0  # a section is skipped if less time is left


@dataclass(frozen=True)
class Section:
    """A part of the check.

    Attributes:
        run: records its results in a report.
        correctness: whether a failure makes the check fail.
        seconds: the most that it may take.
    """

    run: Callable[[Report], None]
    correctness: bool
    seconds: float  # on a GPU, with the start of its process


def sections() -> dict[str, Section]:
    """Return the sections by name, in the order in which they run."""
    from benchmarks import gpu_correctness as c
    from benchmarks import gpu_speed as s
    from benchmarks import gpu_training as t

    return {
        "activation": Section(c.check_activation, True, 80),
        "affine": Section(c.check_affine, True, 60),
        "class_loss": Section(c.check_class_loss, True, 45),
        "opcheck": Section(c.check_operators, True, 45),
        "sizes": Section(c.check_sizes, True, 60),
        "amp": Section(t.check_amp, True, 40),
        "training": Section(t.check_training, True, 60),
        "deformable": Section(t.check_deformable, True, 30),
        "compile": Section(t.check_compile, True, 90),
        "syncs": Section(s.find_host_syncs, False, 40),
        "bandwidth": Section(s.measure_bandwidth, False, 30),
        "speed": Section(s.measure_activation, False, 60),
        "launch": Section(s.measure_launches, False, 40),
        "block": Section(s.measure_block, False, 40),
        "loss": Section(s.measure_class_loss, False, 40),
        "step": Section(s.measure_step, False, 90),
        "inference": Section(s.measure_inference, False, 90),
    }


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.section:
        result = run_section(args.section, args, Path(args.json))
        Path(args.json).write_text(json.dumps(result))
        return 0
    start, results = time.monotonic(), {}
    for name, section in sections().items():
        if args.only and name not in args.only:
            continue
        left = args.budget - (time.monotonic() - start)
        args.seconds = left if args.small else min(left, section.seconds)
        if left < MIN_SECONDS:
            results[name] = {"rows": [], "error": "", "skipped": "the time is up"}
        elif args.in_process:
            results[name] = run_section(name, args)
        else:
            results[name] = run_process(name, args)
        print_section(name, results[name])
    record = {**describe(args), "seconds": time.monotonic() - start, "sections": results}
    record["failed"] = [
        n for n, r in results.items() if has_failed(r) and sections()[n].correctness
    ]
    Path(args.json).write_text(json.dumps(record, indent=1))
    print(
        f"\n{record['device']}, torch {record['torch']}: {len(results)} sections in "
        f"{record['seconds']:.0f} s, written to {args.json}. "
        + (f"Failed: {', '.join(record['failed'])}." if record["failed"] else "All checks passed.")
    )
    return 1 if record["failed"] else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all sections")
    parser.add_argument("--json", default="gpu_check.json", help="file for the results")
    parser.add_argument("--only", nargs="+", choices=list(sections()), help="run these sections")
    parser.add_argument("--small", action="store_true", help="the small form; default on the CPU")
    parser.add_argument("--in-process", action="store_true", help="do not start processes")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # of the started process
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.small = args.small or torch.device(args.device).type != "cuda"
    return args


def run_section(name: str, args: argparse.Namespace, file: Path | None = None) -> dict:
    """Run a section in this process; an error is part of the result."""
    start = time.monotonic()
    deadline = start + 0.7 * args.seconds
    report = Report(torch.device(args.device), args.small, deadline, file=file)
    torch.manual_seed(0)
    error = ""
    try:
        sections()[name].run(report)
    except Exception:
        error = traceback.format_exc()
    return {"rows": report.rows, "error": error, "seconds": time.monotonic() - start}


def run_process(name: str, args: argparse.Namespace) -> dict:
    """Run a section in a new process, as an error on a GPU ends all work of its process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--section", name]
        command += ["--seconds", str(args.seconds), "--device", args.device, "--json", str(file)]
        command += ["--small"] * args.small
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=args.seconds
            )
            error = f"Exit status {done.returncode}.\n{done.stderr[-4000:]}"
        except subprocess.TimeoutExpired:
            error = f"It took longer than {args.seconds:.0f} s."
        result = json.loads(file.read_text()) if file.exists() else {"rows": []}
        return {"error": error, **result}  # only a section that ended has its own error


def has_failed(result: dict) -> bool:
    return bool(result["error"]) or any(row.get("ok") is False for row in result["rows"])


def describe(args: argparse.Namespace) -> dict:
    """Return what the results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "device": device_name(args.device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": installed("triton"),
        "python": sys.version.split()[0],
        "small": args.small,
    }


def print_section(name: str, result: dict) -> None:
    status = "skipped" if result.get("skipped") else "FAILED" if has_failed(result) else "done"
    print(f"\n== {name}: {status}, {result.get('seconds', 0):.1f} s")
    rows = []
    for row in result["rows"]:
        outcome = {True: "ok", False: "FAILED", None: ""}[row.get("ok")]
        note = f"limit {row['limit']:.2g}" if "limit" in row else row.get("unit", "")
        value = f"{row['value']:.4g}" if "value" in row else ""
        text = f"{note} {row.get('note', '')}".strip()
        rows.append([row["name"], value, text if outcome == "FAILED" else text[:100], outcome])
    if rows:
        print(tabulate(rows, tablefmt="plain", disable_numparse=True))
    if result["error"]:
        print(result["error"])
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
