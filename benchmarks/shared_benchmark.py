"""What the benchmarks share: time by interleaved repeats, memory, and the tables."""

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
SHORTEST = 0.05  # seconds; what takes less is run several times for one measurement


def add_common_arguments(parser: argparse.ArgumentParser, dtype: bool = True) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    if dtype:
        parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="write the numbers to this file too")


@dataclass
class ForwardBackward:
    """A forward pass, and the backward pass to its inputs and parameters."""

    forward: Callable[[], Tensor]
    inputs: list[Tensor]
    grad: Tensor | None = None

    def __call__(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.forward(), self.inputs, self.grad)

    def kept(self) -> float:
        """MB that the forward pass keeps for the backward pass, its input included."""
        sizes = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            out = self.forward()  # alive until all is counted, so that no address comes twice
        del out
        return sum(sizes.values()) / 1e6


def measure(runs: dict[str, Callable], args: argparse.Namespace) -> dict[str, dict]:
    """Time and memory of each run, where it runs at all."""
    results, able = {}, {}
    for name, run in runs.items():
        try:
            run()
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            continue
        able[name] = run
        results[name] = {"peak_mb": peak(run, torch.device(args.device))}
        if isinstance(run, ForwardBackward):
            results[name]["kept_mb"] = run.kept()
    for name, seconds in interleaved(able, args.repeats, torch.device(args.device)).items():
        results[name]["seconds"] = seconds
    return results


def interleaved(runs: dict[str, Callable], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each run; two rounds of all of them before the first that counts."""

    def timed(run: Callable, number: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(number):
            run()
        synchronize(device)
        return (time.perf_counter() - start) / number

    for run in runs.values():
        run()
    numbers = {name: math.ceil(SHORTEST / timed(run, 1)) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(repeats), desc="repeats", delay=2):
        for name, run in runs.items():
            seconds[name].append(timed(run, numbers[name]))
    return {name: statistics.median(times) for name, times in seconds.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(run: Callable, device: torch.device) -> float:
    """MB of tensors that a run allocates at most, beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the profiler says of its own cycles
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    events = [event for event in events if event.get("name") == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most / 1e6


def report(
    title: str, results: dict[str, dict], against: list[str], args: argparse.Namespace, memory: str
) -> None:
    """Print a table of the results, and their ratios to some of them; write the JSON file.

    Args:
        title: what was measured, with shapes and dtype.
        results: of each row ``seconds``, ``peak_mb`` and maybe ``kept_mb``; or ``error``.
        against: rows to divide by, in time; and in memory by the first of them.
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
            rows.append([f"{name}: does not run here, {result['error'][:80]}"])
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
        + ("; kept: what the forward pass saves for the backward pass." if has_kept else ".")
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


def tensor_memory(device: str) -> str:
    """How :func:`peak` measures, in words."""
    if device.startswith("cuda"):
        return "torch.cuda.max_memory_allocated, beyond what was allocated before"
    return "tensors allocated at most, by torch.profiler, beyond what was allocated before"
