"""Common parts of the benchmarks: interleaved timing, memory and tables."""

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MIN_SECONDS = 0.05  # shorter runs are repeated within a measurement


def add_common_arguments(parser: argparse.ArgumentParser, dtype: bool = True) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    if dtype:
        parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="also write the results to this file")


@dataclass
class ForwardBackward:
    """A forward pass, and the backward pass to its inputs and parameters."""

    forward: Callable[[], Tensor]
    inputs: list[Tensor]
    grad: Tensor | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.forward(), self.inputs, self.grad)

    def kept(self) -> float:
        """Return the MB saved by the forward pass for the backward pass, including its inputs."""
        sizes = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            out = self.forward()  # keeps storages alive, so that addresses are unique
        del out
        return sum(sizes.values()) / 1e6


def measure(runs: dict[str, Callable], args: argparse.Namespace) -> dict[str, dict]:
    """Return time and memory of each run, or the error if it fails."""
    results, working = {}, {}
    for name, run in runs.items():
        try:
            run()
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        working[name] = run
        results[name] = {"peak_mb": peak(run, torch.device(args.device))}
        if isinstance(run, ForwardBackward):
            results[name]["kept_mb"] = run.kept()
    clock = time.process_time if getattr(args, "cpu_time", False) else time.perf_counter
    times = interleaved(working, args.repeats, torch.device(args.device), clock)
    for name, seconds in times.items():
        results[name]["seconds"] = seconds
    return results


def interleaved(
    runs: dict[str, Callable],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each run, after two warm-up rounds."""

    def timed(run: Callable, number: int) -> float:
        synchronize(device)
        start = clock()
        for _ in range(number):
            run()
        synchronize(device)
        return (clock() - start) / number

    for run in runs.values():
        run()
    numbers = {name: math.ceil(MIN_SECONDS / timed(run, 1)) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(repeats), desc="repeats", delay=2):
        for name, run in runs.items():
            seconds[name].append(timed(run, numbers[name]))
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(run: Callable, device: torch.device) -> float:
    """Return the peak MB of tensors allocated by a run, without those allocated before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about profiler cycles
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    events = [event for event in events if event.get("name") == "[memory]"]
    current = highest = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        current += event["args"]["Bytes"]
        highest = max(highest, current)
    return highest / 1e6


def report(
    title: str, results: dict[str, dict], against: list[str], args: argparse.Namespace, memory: str
) -> None:
    """Print a table of results and ratios, and write the JSON file.

    Args:
        title: what was measured, with shapes and dtype.
        results: for each row ``seconds``, ``peak_mb`` and optionally ``kept_mb``, or ``error``.
        against: reference rows of the time ratios; the first is also that of the memory ratio.
        memory: how the peak was measured.
    """
    where = {
        "device": device_name(args.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": args.repeats,
    }
    against = [name for name in against if "seconds" in results.get(name, {})]
    has_kept = any("kept_mb" in result for result in results.values())
    rows = []
    for name, result in results.items():
        if "error" in result:
            rows.append([f"{name}: failed, {result['error'][:80]}"])
            continue
        result["ratios"] = {n: result["seconds"] / results[n]["seconds"] for n in against}
        memory_ratio = _ratio(result["peak_mb"], results[against[0]]["peak_mb"])
        result["peak_ratio"] = memory_ratio
        row = [name, 1e3 * result["seconds"], *result["ratios"].values()]
        row += [result["peak_mb"], memory_ratio]
        rows.append(row + [result.get("kept_mb")] * has_kept)
    headers = ["", "ms", *(f"time against\n{n}" for n in against)]
    headers += ["peak MB", f"peak against\n{against[0]}"] + ["kept MB"] * has_kept
    print(
        f"\n{title}; {where['device']}, {where['threads']} threads, torch {where['torch']}, median "
        f"of {args.repeats} interleaved repeats\nPeak: {memory}"
        + ("; kept: memory saved by the forward pass for the backward pass." if has_kept else ".")
    )
    formats = ["", ",.2f", *(".2f" for _ in against), ",.1f", ".2f", ",.1f"]
    print(tabulate(rows, headers=headers, floatfmt=formats[: len(headers)]), flush=True)
    if args.json:
        record = {"title": title, **where, "memory": memory, "rows": results}
        Path(args.json).write_text(json.dumps(record, indent=1))


def _ratio(a: float, b: float) -> float | None:
    return a / b if b else None


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "CPU"


def memory_method(device: str) -> str:
    """Describe how :func:`peak` measures memory."""
    if device.startswith("cuda"):
        return "torch.cuda.max_memory_allocated, minus memory allocated before"
    return "maximum of allocated tensors by torch.profiler, minus memory allocated before"
