"""Evaluate the data of evaluation_data.py with one library: run in a process by evaluation.py."""

import contextlib
import json
import sys
import time
from pathlib import Path

import numpy as np

from .evaluation_data import Detector
from .processes import peak_memory


def write(iou_type: str, folder: Path) -> dict:
    """Write the detections as a result file, for the libraries that read one."""
    detector = Detector(folder)
    with open(folder / "results.json", "w") as file:
        for i in range(len(detector)):
            classes, scores, boxes, counts, size = detector[i]
            boxes[:, 2:] -= boxes[:, :2]
            geometry, shapes = "bbox", boxes.tolist()
            if iou_type != "bbox":
                geometry = "segmentation"
                shapes = [{"size": size, "counts": c.decode()} for c in counts]
            columns = detector.ids[classes].tolist(), scores.tolist(), shapes
            for category_id, score, shape in zip(*columns, strict=True):
                record = {"image_id": i + 1, "category_id": category_id, "score": score}
                start = "," if file.tell() else "["
                file.write(start + json.dumps({**record, geometry: shape}))
        file.write("]")
    return {}


def ours(iou_type: str, folder: Path) -> dict:
    import torch
    from detectron2.structures import Boxes, Instances

    from apa_det.data import ensure_metadata, register_lvis_format
    from apa_det.evaluation import LongTailEvaluator, fast_engine

    detector = Detector(folder)
    imports = peak_memory()
    engine = fast_engine.native = Timed(fast_engine.native)
    register_lvis_format("benchmark", folder / "gt.json", folder)
    ensure_metadata("benchmark")  # already loaded by the data loader in practice
    start = time.perf_counter()
    evaluator = LongTailEvaluator("benchmark", (iou_type,), distributed=False)
    read = time.perf_counter() - start
    process = 0.0
    for i in range(len(detector)):
        classes, scores, boxes, counts, size = detector[i]
        instances = Instances(size)
        instances.pred_boxes = Boxes(torch.from_numpy(boxes))
        instances.scores = torch.from_numpy(scores)
        instances.pred_classes = torch.from_numpy(classes)
        if iou_type == "segm":
            instances.pred_masks_rle = [{"size": list(size), "counts": c} for c in counts]
        start = time.perf_counter()
        evaluator.process([{"image_id": i + 1}], [{"instances": instances}])
        process += time.perf_counter() - start
    start = time.perf_counter()
    results = evaluator.evaluate()
    evaluate = time.perf_counter() - start
    parts = {"read": read, "process": process, "evaluate": evaluate, "engine": engine.seconds}
    return _numbers(read + process + evaluate, imports, results[iou_type]["AP"] / 100) | parts


def _numbers(seconds: float, imports: float, ap: float) -> dict:
    return {"seconds": seconds, "peak": peak_memory(), "imports": imports, "AP": ap}


class Timed:
    """Wrapper of a module or object that measures the time in its functions and methods."""

    def __init__(self, target, clock: "Timed | None" = None):
        self._target, self._clock = target, clock or self
        self.seconds = 0.0

    def __getattr__(self, name: str):
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*args, **kwargs):
            start = time.perf_counter()
            result = value(*args, **kwargs)
            self._clock.seconds += time.perf_counter() - start
            return Timed(result, self._clock) if isinstance(value, type) else result

        return call


def fast(iou_type: str, folder: Path) -> dict:
    from ultrafast_pycocotools import COCO, COCOeval

    imports = peak_memory()
    start = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        truth = COCO(folder / "gt.json", verbose=False)
        detections = truth.loadRes(folder / "results.json")
        run = COCOeval(truth, detections, iou_type, lvis_style=True, print_function=lambda _: None)
        run.run()
    return _numbers(time.perf_counter() - start, imports, run.stats_as_dict["AP"])


def lvis(iou_type: str, folder: Path) -> dict:
    from lvis import LVIS, LVISEval, LVISResults

    np.float = float  # used by lvis-api 0.5.3; removed in numpy 1.24
    imports = peak_memory()
    start = time.perf_counter()
    truth = LVIS(str(folder / "gt.json"))
    run = LVISEval(truth, LVISResults(truth, str(folder / "results.json")), iou_type)
    run.run()
    return _numbers(time.perf_counter() - start, imports, float(run.results["AP"]))


WORKERS = {"write": write, "ours": ours, "fast": fast, "lvis": lvis}


if __name__ == "__main__":
    library, iou_type, folder = sys.argv[1:]
    print(json.dumps(WORKERS[library](iou_type, Path(folder))))
