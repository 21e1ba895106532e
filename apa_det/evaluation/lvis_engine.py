"""The LVIS metrics as lvis-api computes them: the reference for every other engine."""

from types import FunctionType, SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util

try:
    from lvis import LVIS, LVISEval, LVISResults
except ImportError as error:
    raise ImportError(
        f"LVIS evaluation needs lvis-api ({error}): pip install --no-deps lvis==0.5.3"
    ) from error

__all__ = ["evaluate"]


def evaluate(
    dataset: dict, predictions: list[dict], iou_type: str, max_dets: int = 300
) -> dict[str, float]:
    """The 13 metrics of LVIS (Gupta, Dollár and Girshick, CVPR 2019).

    Args:
        dataset: the ground truth in LVIS format, every category with a ``frequency``.
        predictions: LVIS results: ``image_id``, ``category_id`` (the dataset's own), ``score``, and
            ``bbox`` (XYWH, pixels) or ``segmentation`` (compressed RLE) as ``iou_type`` asks.
        iou_type: "bbox" or "segm". The size of a prediction is its box area or its mask area.
        max_dets: the predictions with the highest scores that are kept for each picture.

    Returns:
        AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300, ARs@300, ARm@300 and ARl@300 (named
        after ``max_dets``) as fractions. NaN: the ground truth has nothing in that group. Without
        any prediction the others are 0.

    Raises:
        ValueError: a prediction names a picture that is not in the dataset.
    """
    truth = _GroundTruth(dataset)
    run = _Evaluation(truth, _Detections(truth, predictions, iou_type, max_dets), iou_type)
    run.params.max_dets = max_dets
    run.run()
    return {name: float(v) if v >= 0 else float("nan") for name, v in run.get_results().items()}


class _GroundTruth(LVIS):
    """lvis-api's index over a dict in place of a file; the dict stays as it is."""

    def _load_json(self, path: dict) -> dict:
        # lvis-api writes into annotations, and takes a match with one of id 0 for no match.
        annotations = [{**a, "id": i} for i, a in enumerate(path["annotations"], 1)]
        return {**path, "annotations": annotations}


class _Detections(LVISResults):
    """lvis-api's index over predictions: any number of them, and none is changed."""

    def __init__(self, truth: LVIS, predictions: list[dict], iou_type: str, max_dets: int):
        self.logger = truth.logger
        unknown = {p["image_id"] for p in predictions} - truth.imgs.keys()
        if unknown:
            raise ValueError(
                f"{len(unknown)} pictures with predictions are not in the dataset, "
                f"image_id {min(unknown)} for one."
            )
        kept = self.limit_dets_per_image(predictions, max_dets)
        if iou_type == "bbox":
            areas = [p["bbox"][2] * p["bbox"][3] for p in kept]
        else:
            areas = [mask_util.area(p["segmentation"]) for p in kept]
        annotations = [
            {**p, "area": area, "id": i}
            for i, (p, area) in enumerate(zip(kept, areas, strict=True), 1)
        ]
        self.dataset = {**truth.dataset, "annotations": annotations}
        self._create_index()


def _with_np_float(method: FunctionType) -> FunctionType:
    """The same method, seeing a numpy that still has ``np.float`` (gone since numpy 1.24)."""
    numpy = SimpleNamespace(**{**vars(np), "float": float})
    return FunctionType(method.__code__, {**method.__globals__, "np": numpy}, method.__name__)


class _Evaluation(LVISEval):
    accumulate = _with_np_float(LVISEval.accumulate)
