"""One measurement of the data benchmark per process: ``python -m benchmarks.data_workers``."""

import json
import os
import statistics
import sys
import time
from pathlib import Path

from .processes import peak_memory

OURS, THEIRS = "benchmark_train", "lvis_v1_benchmark_train"  # detectron2 goes by the name
BATCH_SIZE = 16


def load(library: str, folder: Path) -> dict:
    """Read the dataset and build the training loader."""
    build = _builder(library, folder, 0)
    imports = peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    loader = build()
    seconds = time.perf_counter() - start
    del loader
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "peak": peak_memory() - imports,
        "shared": _shared_memory(),
    }


def speed(folder: Path, batches: int, workers: int) -> dict:
    """Load batches with both loaders in turn, and return the images per second of each."""
    loaders = {
        library: iter(_builder(library, folder, workers)()) for library in ("ours", "detectron2")
    }
    seconds = {library: [] for library in loaders}
    for _ in range(batches):
        for library, loader in loaders.items():
            start = time.perf_counter()
            next(loader)
            seconds[library].append(time.perf_counter() - start)
    return {library: BATCH_SIZE / statistics.median(times) for library, times in seconds.items()}


def processes(library: str, folder: Path, number: int) -> dict:
    """Build the training loader in several processes of a job."""
    from detectron2.engine import launch

    start = time.perf_counter()
    launch(_process, number, dist_url="auto", args=(library, folder))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **json.loads((folder / "processes.json").read_text())}


def _process(library: str, folder: Path) -> None:
    from detectron2.utils import comm

    build = _builder(library, folder, 0)
    imports, private = peak_memory(), _private_memory()
    loader = build()
    memory = peak_memory() - imports, _private_memory() - private, _shared_memory()
    peaks, privates, shared = zip(*comm.all_gather(memory), strict=True)
    if comm.is_main_process():
        total = {"peak": sum(peaks), "private": sum(privates), "shared": max(shared)}
        (folder / "processes.json").write_text(json.dumps(total))
    del loader


def check(folder: Path) -> dict:
    """Check the JSON file as ``prepare_dataset.py check``, without the image files."""
    from apa_det.data import check_dataset

    imports = peak_memory()
    start = time.perf_counter()
    report = check_dataset(folder / "train.json", folder / "no_images")
    assert {problem.kind for problem in report.problems} == {"missing image file"}
    return {"seconds": time.perf_counter() - start, "peak": peak_memory() - imports}


def _builder(library: str, folder: Path, workers: int):
    """Import the library and return the function that reads and builds."""
    from detectron2.config import get_cfg
    from detectron2.data import DatasetMapper, build_detection_train_loader
    from detectron2.data.datasets import register_lvis_instances

    from apa_det.config import add_apa_config
    from apa_det.data import build_train_loader, register_lvis_format

    cfg = get_cfg()
    if library == "ours":
        add_apa_config(cfg)
        register_lvis_format(OURS, folder / "train.json", folder)
    else:
        register_lvis_instances(THEIRS, {}, str(folder / "train.json"), f"{folder}/")
    cfg.DATASETS.TRAIN = [OURS if library == "ours" else THEIRS]
    cfg.MODEL.MASK_ON = True
    cfg.SOLVER.IMS_PER_BATCH = BATCH_SIZE
    cfg.DATALOADER.NUM_WORKERS = workers
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.001
    cfg.SEED = 1
    build_loader = build_train_loader if library == "ours" else build_detection_train_loader
    return lambda: build_loader(cfg, mapper=DatasetMapper(cfg, is_train=True))


def _shared_memory() -> float:
    """Return the MB of files without a name that the process has opened."""
    sizes = {}
    for link in list(Path("/proc/self/fd").iterdir()):
        if link.exists() and "apa_det" in os.readlink(link):
            status = link.stat()
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values()) / 1e6


def _private_memory() -> float:
    """Return the MB of this process that it shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1e3


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    values = [int(v) if v.isdigit() else Path(v) if "/" in v else v for v in arguments]
    measures = {"load": load, "speed": speed, "processes": processes, "check": check}
    print(json.dumps(measures[name](*values)))
