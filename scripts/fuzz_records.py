"""Change single values of a dataset or of its results, and check that reading them is safe.

Each changed file must either be refused with one sentence that names the file and the record, or
be accepted with the metrics of lvis-api. Anything else is printed, with the number of the mutation,
and makes the exit status 1.

    python scripts/fuzz_records.py 100000
"""

import argparse
import copy
import json
import logging
import math
import os
import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch
from lvis import LVIS, LVISResults

from apa_det.data import check_dataset, coco_to_lvis, load_lvis_format, read_coco_json
from apa_det.data.validation import structure_problems
from apa_det.errors import UserError
from apa_det.evaluation import GroundTruth, evaluate, read_results
from apa_det.evaluation.lvis_engine import _Evaluation

MEMORY = 12 << 30  # bytes of address space of a process
BATCH = 500  # mutations per task
SIZES = {7: (40, 60), 3: (60, 60), 12: (50, 30)}  # height and width by image id
CATEGORIES = {5: "r", 2: "c", 9: "f"}
PARTS = ("dataset", "results", "predictions", "COCO dataset")  # the third: results as .pth
TABLES = ("images", "annotations", "categories")
_REFERENCES = tuple(f"['{key}']" for key in ("id", "name", "height", "width"))  # by other records
REMOVED = object()
VALUES = (
    *(REMOVED, None, True, False, "", "x", "1", "b'1'", [], [[]], {}, [1], [[1]], {"a": 1}),
    *(0, 1, -1, 2, 3.0, 0.5, -0.0, 1e-300, 1e9, 1e300, -1e300, math.nan, math.inf, -math.inf),
    *(2**31, 2**32, 2**53 + 2, 2**62, 2**63, -(2**63), 2**64, 10**400, "\ud800", "a" * 3000),
)


def make_dataset(seed: int = 0) -> tuple[dict, list[dict]]:
    """Return a small valid dataset in LVIS format, and results with masks of all kinds."""
    rng = random.Random(seed)
    images = [
        {
            "id": image_id,
            "file_name": f"{image_id}.png",
            "height": height,
            "width": width,
            "neg_category_ids": rng.sample(list(CATEGORIES), 1),
            "not_exhaustive_category_ids": rng.sample(list(CATEGORIES), rng.randrange(2)),
        }
        for image_id, (height, width) in SIZES.items()
    ]
    annotations, results = [], []
    for i in range(1, 10):
        image_id, category_id = rng.choice(list(SIZES)), rng.choice(list(CATEGORIES))
        box = [rng.randrange(2, 12), rng.randrange(2, 12), rng.randrange(8, 16), 12]
        x, y, width, height = box
        polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
        record = {"image_id": image_id, "category_id": category_id, "bbox": box}
        mask = [polygon], _rle(polygon, image_id), _runs(polygon, image_id)
        annotations.append(
            {"id": i, **record, "area": width * height, "segmentation": mask[i % 3]}
            | ({"ignore": 1} if i == 4 else {})
        )
        moved = [v + rng.choice((0, 1, 2)) for v in polygon]
        mask = _rle(moved, image_id), [moved], _runs(moved, image_id)
        box = mask_util.toBbox(_rle(moved, image_id)).tolist()
        score = round(rng.random(), 3)
        results.append({**record, "bbox": box, "score": score, "segmentation": mask[i % 3]})
    categories = [
        {"id": i, "name": f"c{i}", "frequency": f, "image_count": 9, "instance_count": 9}
        for i, f in CATEGORIES.items()
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def _rle(polygon: list, image_id: int) -> dict:
    rle = mask_util.frPyObjects([polygon], *SIZES[image_id])[0]
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _runs(polygon: list, image_id: int) -> dict:
    """Return uncompressed RLE."""
    mask = mask_util.decode(_rle(polygon, image_id)).ravel(order="F")
    ends = np.flatnonzero(np.diff(mask, prepend=0, append=2)).tolist()
    return {"size": list(SIZES[image_id]), "counts": np.diff([0, *ends]).tolist()}


def mutate(records: list[dict], rng: random.Random) -> tuple[int, str]:
    """Change one value in one record, in place; return its index, and what was changed."""
    index = rng.randrange(len(records))
    keys, parent = [], records[index]
    while True:
        options = list(parent) if isinstance(parent, dict) else range(len(parent))
        keys.append(key := rng.choice(options))
        old = parent[key]
        if not isinstance(old, dict | list) or not old or rng.random() < 0.3:
            break
        parent = old
    new = rng.choice((*VALUES, *_similar(old, records, keys, rng)))
    if new is REMOVED:
        del parent[key]
    else:
        parent[key] = copy.deepcopy(new)
    return index, f"{keys}: {old!r:.80} -> {'removed' if new is REMOVED else repr(new)[:80]}"


def _similar(old, records: list[dict], keys: list, rng: random.Random) -> Iterator:
    """Yield values that may be valid instead of the old one."""
    yield rng.choice(records).get(keys[0]) if len(keys) == 1 else old
    if isinstance(old, str):
        i = rng.randrange(len(old) + 1)
        yield from (old[:i], old[:i] + chr(rng.randrange(40, 115)) + old[i + 1 :], f"b'{old}'")
    elif isinstance(old, int | float):
        yield from (old + 1, old - 1, -old, old * 1000, [old], str(old))
        yield float(old) if abs(old) < 1e300 else old
    elif isinstance(old, list):
        yield from (old[:-1], [*old, *old], [old], tuple(old)[::-1])
    elif isinstance(old, dict):
        yield from ([old], list(old.items()))


def check(part: str, rng: random.Random, folder: Path) -> str:
    """Mutate one of :data:`PARTS` and return "refused" or "accepted".

    Raises:
        AssertionError: a UserError does not name the record, or the metrics differ from lvis-api's.
    """
    dataset, results = make_dataset(rng.randrange(3))
    of_results = part in ("results", "predictions")
    gt, file = folder / "gt.json", folder / "results.json"
    if part == "predictions":
        file = folder / "instances_predictions.pth"
        results.sort(key=lambda result: result["image_id"])
        for result in results:
            result["category_id"] = sorted(CATEGORIES).index(result["category_id"])
        images = [
            {"image_id": i, "instances": [r for r in results if r["image_id"] == i]}
            for i in sorted(SIZES)
        ]
    if part == "COCO dataset":
        for image in dataset["images"]:
            del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    table = rng.choice(TABLES)
    records = results if of_results else dataset[table]
    index, change = mutate(records, rng)
    record_id = records[index].get("id")
    gt.write_text(json.dumps(dataset))
    if part == "predictions":
        torch.save(images, file)
    else:
        file.write_text(json.dumps(results))
    where = f"{part} {'' if of_results else table} {index} {change}"
    try:
        if part == "COCO dataset":
            lvis = coco_to_lvis(read_coco_json(gt))
            assert not [*structure_problems(lvis)], where
        else:
            load_lvis_format(gt, folder)
            _problems(gt, folder)
        truth = GroundTruth.from_file(gt)
    except UserError as error:
        noun = "category" if table == "categories" else table[:-1]
        names = f": {noun} {record_id}: ", f": {noun} number {index + 1} in the file"
        named = any(name in str(error) for name in names) or change.startswith(_REFERENCES)
        assert named and str(gt) in str(error) and "\n" not in str(error), f"{where}: {error}"
        assert part == "COCO dataset" or _problems(gt, folder), where
        return "refused"
    try:
        detections = read_results(file, truth)
    except UserError as error:
        named = not of_results or f"record {index} (from 0): " in str(error)
        assert named and str(file) in str(error) and "\n" not in str(error), f"{where}: {error}"
        return "refused"
    if part == "predictions":
        results = [{**r, "category_id": sorted(CATEGORIES)[int(r["category_id"])]} for r in results]
    for iou_type in ("bbox", "segm"):
        if iou_type == "segm" and (detections.masks is None or truth.segmentations is None):
            continue
        ours = evaluate(truth, detections, iou_type).metrics()
        if part == "COCO dataset":
            continue
        theirs = lvis_api_metrics(gt, results, iou_type)
        if theirs is None:
            return "accepted, but not by lvis-api"
        for name, value in theirs.items():
            same = math.isnan(ours[name]) if value < 0 else abs(ours[name] - value) < 1e-9
            assert same, f"{where}: {iou_type} {name} is {ours[name]}, {value} by lvis-api"
    return "accepted"


def _problems(gt: Path, folder: Path) -> list[dict]:
    """Return the problems that the check of the dataset finds, but for the missing images."""
    summary = json.loads(json.dumps(check_dataset(gt, folder).summary()))
    return [p for p in summary["problems"] if p["kind"] != "missing image file"]


def lvis_api_metrics(gt_file: Path, results: list[dict], iou_type: str) -> dict | None:
    """Return lvis-api's metrics, -1 if undefined; None if it cannot read the files."""
    unused = "segmentation" if iou_type == "bbox" else "bbox"  # its sizes are those of boxes, else
    results = json.loads(json.dumps(results))
    results = [{k: v for k, v in result.items() if k != unused} for result in results]
    try:
        truth = LVIS(str(gt_file))
        if any(annotation["id"] == 0 for annotation in truth.anns.values()):
            return None  # lvis-api counts no match with the id 0
        for result in results if iou_type == "segm" else ():
            result["segmentation"] = truth.ann_to_rle(result)
        evaluation = _Evaluation(truth, LVISResults(truth, results), iou_type)
        evaluation.run()
    except Exception:
        return None
    return {name: float(value) for name, value in evaluation.get_results().items()}


def run(first: int, number: int) -> tuple[Counter, list[str]]:
    """Check a range of mutations; return the number of each outcome, and the failures."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    logging.disable(logging.CRITICAL)
    os.environ["TQDM_DISABLE"] = "1"
    counts, failures = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(first, first + number):
            rng = random.Random(i)
            part = rng.choice(PARTS)
            try:
                counts[f"{part}: {check(part, rng, Path(folder))}"] += 1
            except Exception as error:
                counts["failed"] += 1
                failures.append(f"mutation {i}: {type(error).__name__}: {error}")
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mutations", type=int, help="number of mutations")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="first one (default 0)")
    parser.add_argument("--processes", type=int, metavar="N", help="default: one per CPU")
    args = parser.parse_args()
    starts = range(args.first, args.first + args.mutations, BATCH)
    end = starts.start + args.mutations
    counts, failures = Counter(), []
    with ProcessPoolExecutor(args.processes) as pool:
        tasks = {pool.submit(run, start, min(BATCH, end - start)): start for start in starts}
        for task in as_completed(tasks):
            try:
                some, new = task.result()
            except BrokenProcessPool:
                some, new = Counter(crashed=1), [f"a process crashed, near {tasks[task]}"]
            counts += some
            failures += new
            for failure in new:
                print(failure, flush=True)
    for outcome, number in sorted(counts.items()):
        print(f"{number:>9,}  {outcome}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
