#!/usr/bin/env python
"""Read damaged and hostile files, to check that each ends in a result or in one UserError.

The files are small checkpoints, predictions and yaml files with random changes, and random pickles.
Reading them must not run or download anything, take more than --memory or last longer than 10 s. A
file that does is kept in --output.
"""

import argparse
import io
import logging
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from apa_det.checkpoint import convert, load_checkpoint
from apa_det.engine import StrictCheckpointer, read_config
from apa_det.errors import UserError
from apa_det.evaluation.ground_truth import GroundTruth
from apa_det.evaluation.result_files import read_results
from apa_det.experiments import read_plan
from apa_det.utils.yaml_files import has_lazy_calls

SECONDS = 10
CONFIGS = Path(__file__).parents[1] / "configs"
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"}


class Forbidden(BaseException):
    """A file has run or connected to something."""


class TimeOut(BaseException):
    """A file took too long."""


class Model(nn.Module):
    """A model whose parameters have the names of a detector's."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.roi_heads = nn.Module()
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(4, 3)


# ------------------------------------------------------------------------------ files
def checkpoint_seeds() -> list[bytes]:
    """Return small checkpoints in each format."""
    state = Model().state_dict()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    content = {"model": state, "class_names": ["a", "b"], "iteration": 3, "meta": {"x": (1, None)}}
    zoo = {"model": arrays, "__author__": "x", "matching_heuristics": True}
    caffe2 = {"blobs": {"conv1_w": arrays["backbone.stem.0.weight"], "lr": np.float64(1)}}
    header = b'{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'
    result = [pickle.dumps(x, protocol) for x in (content, zoo, caffe2) for protocol in (0, 2, 4)]
    result.append(struct.pack("<Q", len(header)) + header + bytes(24))
    return result + [torch_bytes(content, zip_) for zip_ in (True, False)]


def prediction_seeds() -> list[bytes]:
    """Return small instances_predictions.pth files."""
    rle = {"size": [8, 8], "counts": "0P2"}
    record = {"image_id": 1, "category_id": 0, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5}
    images = [{"image_id": 1, "instances": [{**record, "segmentation": rle}] * 2}]
    return [torch_bytes(images, True), torch_bytes(images, False), pickle.dumps(images)]


def torch_bytes(content: object, zip_: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zip_)
    return buffer.getvalue()


def yaml_seeds() -> list[bytes]:
    """Return a few configs and descriptions of the project, and one that yaml allows."""
    files = ["Quickstart/mask_rcnn_R_18_FPN_APA.yaml", "Comparison/quickstart.yaml"]
    seeds = [(CONFIGS / file).read_text().replace('"../', f'"{CONFIGS}/') for file in files]
    seeds[1] = seeds[1].replace("base: ", f"base: {CONFIGS}/Comparison/")
    tricks = "a: &a {x: 1}\nb: {<<: [*a, *a], ? [1, 2] : !!set {a}}\nVERSION: 1\nc: |\n  text\n"
    return [seed.encode() for seed in (*seeds, tricks)]


# ------------------------------------------------------------------------------ changes
NUMBERS = [b"\xff" * 4, b"\xff" * 8, b"\x00" * 4, struct.pack("<I", 2**31 - 1), b"\x00\x00\x00\x40"]
NAMES = [
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch", "FloatStorage"),
    ("torch", "device"),
    ("torch", "Size"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "bytearray"),
    ("builtins", "set"),
    ("builtins", "complex"),
    ("builtins", "eval"),
    ("os", "system"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
]
TEXTS = [b"", b"model", b"instances", b"storage", b"f4", b"0", b"cpu", b"b", b"a\x1b[1m", b"x" * 99]
LITERALS = [b"N", b"\x88", b"K\x02", b"K\x00", b"G?\xf0" + bytes(6), b"G\x7f\xf8" + bytes(6)]
YAML_TOKENS = [
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"- [*a, *a, *a]\n",
    b"!!python/object/apply:os.system ['touch x']",
    b"!!python/name:os.system",
    b"!!python/tuple [1, 2]",
    b"!!timestamp x",
    b"!!int ''",
    b"!!binary '='",
    b"!!float 1:1:1",
    b"2024-13-01",
    b"_BASE_: http://127.0.0.1:9/x\n",
    b"_BASE_: [file.yaml, file.yaml]\n",
    b"_target_: os.system\n",
    b"? ",
    b"[" * 100,
    b"{a: " * 100,
    b"'\x1b[31m'",
    b'"\\e"',
    b"\xff\xfe",
    b"%TAG ! tag:x,2000:\n---\n",
    b"---\n",
    b"1" * 5000,
    b"((((" * 50,
    b"VERSION: -3\n",
    b"null",
    b": ",
    b"\t",
]


def random_value(rng: random.Random, levels: int = 4) -> bytes:
    """Return opcodes that push a random value: data, a call, or a reference to an earlier value."""

    def values(most: int) -> bytes:
        return b"".join(random_value(rng, levels - 1) for _ in range(rng.randrange(most + 1)))

    def text() -> bytes:
        chosen = rng.choice(TEXTS)
        return b"X" + struct.pack("<I", len(chosen)) + chosen

    match rng.randrange(12) if levels else rng.randrange(4):
        case 0:
            return rng.choice(LITERALS)
        case 1:
            return text()
        case 2:
            number = rng.choice([2**62, -1, 2**31, 10**9])
            return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)
        case 3:
            return rng.choice([b"h" + bytes([rng.randrange(4)]), b"C\x08" + rng.randbytes(8)])
        case 4 | 5:
            return b"](" + values(4) + b"e"
        case 6:
            return b"(" + values(4) + b"t"
        case 7:
            pairs = [text() + random_value(rng, levels - 1) for _ in range(rng.randrange(4))]
            return b"}(" + b"".join(pairs) + b"u"
        case 8 | 9:
            called = "c{}\n{}\n".format(*rng.choice(NAMES)).encode()
            return called + b"(" + values(7) + b"tR"
        case 10:
            return random_value(rng, levels - 1) + rng.choice([b"\x94", values(1) + b"b"])
        case _:
            storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000N"
            return storage + rng.choice(LITERALS) + b"tQ"


def random_pickle(rng: random.Random) -> bytes:
    return b"\x80\x04N\x94" + random_value(rng, 6) + b"."


def changed(data: bytes, rng: random.Random, tokens: list[bytes]) -> bytes:
    """Return data with a few random changes."""
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        i = rng.randrange(len(data) + 1)
        j = min(len(data), i + rng.choice([0, 1, 1, 4, 16]))
        new = rng.choice(
            [
                bytes([rng.randrange(256)]),
                rng.randbytes(4),
                data[i : i + 40] * 2,
                b"",
                rng.choice(tokens),
            ]
        )
        data = data[:i] + new + data[j:] if rng.random() < 0.95 else data[:i]
    return data


def changed_file(data: bytes, rng: random.Random) -> bytes:
    """Return a changed checkpoint; of a zip archive, mostly only the pickle in it is changed."""

    def change(data: bytes) -> bytes:
        if rng.random() < 0.3:
            return random_pickle(rng)
        return changed(data, rng, [*NUMBERS, random_value(rng)])

    if not data.startswith(b"PK") or rng.random() < 0.2:
        return change(data)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return buffer.getvalue()


# ------------------------------------------------------------------------------ readers
def use_checkpoint(path: str) -> None:
    for use in (
        lambda: convert(load_checkpoint(path)).table(),
        lambda: convert(load_checkpoint(path), Model()),
        lambda: StrictCheckpointer(Model(), strict=False, class_names=["a"]).load(path),
    ):
        with suppress(UserError):
            use()
    load_checkpoint(path)


def use_predictions(path: str) -> None:
    truth = {
        "images": [{"id": 1, "height": 8, "width": 8, "neg_category_ids": []}],
        "categories": [{"id": 1, "name": "a", "frequency": "f", "image_count": 200}],
        "annotations": [],
    }
    read_results(path, GroundTruth.from_dataset(truth))


def use_yaml(path: str) -> None:
    if has_lazy_calls(path):  # code
        return
    try:
        read_config(path)
    except UserError:
        read_plan("out", path)


class Kind(NamedTuple):
    """A kind of files: the suffix, unchanged files, how to change one, and how to use it."""

    suffix: str
    seeds: Callable[[], list[bytes]]
    change: Callable[[bytes, random.Random], bytes]
    use: Callable[[str], None]


KINDS = {
    "checkpoints": Kind(".pth", checkpoint_seeds, changed_file, use_checkpoint),
    "predictions": Kind(".pth", prediction_seeds, changed_file, use_predictions),
    "yaml": Kind(".yaml", yaml_seeds, lambda d, rng: changed(d, rng, YAML_TOKENS), use_yaml),
}


# ------------------------------------------------------------------------------ running
def outcome(kind: Kind, path: str) -> str:
    """Use a file; return "read", "UserError", or the traceback of a fault."""
    watch.on = True
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        kind.use(path)
        return "read"
    except UserError as error:
        faulty = "\n" in str(error) or not str(error).isprintable()
        return traceback.format_exc() if faulty else "UserError"
    except (Exception, Forbidden, TimeOut):
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.on = False


def watch(event: str, arguments: tuple) -> None:
    if watch.on and event in FORBIDDEN:
        raise Forbidden(f"{event} {arguments}")


watch.on = False


def stop(*_) -> None:
    raise TimeOut(f"more than {SECONDS} s")


def fuzz(name: str, count: int, seed: int, folder: Path) -> tuple[Counter, list[Path]]:
    """Use changed files of a kind.

    Returns:
        The number of files by outcome, and the files with a fault, which are kept in the folder
        with their traceback beside them.
    """
    kind = KINDS[name]
    seeds, outcomes, faults = kind.seeds(), Counter(), []
    for i in range(count):
        rng = random.Random(f"{name} {seed} {i}")
        path = folder / f"{name}-{seed}-{i}{kind.suffix}"
        data = rng.choice(seeds) if i < len(seeds) else kind.change(rng.choice(seeds), rng)
        path.write_bytes(data)
        result = outcome(kind, str(path))
        if result in ("read", "UserError"):
            path.unlink()
        else:
            path.with_suffix(".txt").write_text(result)
            faults.append(path)
            result = "fault"
        outcomes[result] += 1
    return outcomes, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="files of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: 0)")
    parser.add_argument("--memory", type=float, default=8, help="limit in GB (default: 8)")
    parser.add_argument("--output", type=Path, help="folder of files with a fault")
    args = parser.parse_args()
    limit = int(args.memory * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, stop)
    sys.addaudithook(watch)
    logging.disable()
    warnings.simplefilter("ignore")
    folder = args.output or Path(tempfile.mkdtemp(prefix="fuzz_files_"))
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in args.kinds:
        start = time.perf_counter()
        outcomes, faults = fuzz(name, args.count, args.seed, folder)
        text = ", ".join(f"{n} {result}" for result, n in outcomes.items())
        print(f"{name}: {args.count} files in {time.perf_counter() - start:.1f} s: {text}")
        for path in faults:
            print(f"  {path}: {path.with_suffix('.txt').read_text().splitlines()[-1]}")
        failed |= bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
