"""COCO box AP for the many classes of V3Det."""

import contextlib
import io
import itertools
import json
import os
from collections import defaultdict

import numpy as np
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.logger import create_small_table
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from ..utils.atomic_files import open_atomic

_AREAS = {"AP": "all", "APs": "small", "APm": "medium", "APl": "large"}


class V3DetEvaluator(COCOEvaluator):
    """COCO's box AP, AP50, AP75, APs, APm and APl for V3Det.

    The results are those of detectron2's COCOEvaluator with ``max_dets_per_image=300``. That
    evaluator stores a record for each pair of image and class, 394 million for V3Det val, and logs
    the AP of each of the 13,204 classes.

    Args:
        dataset_name: a registered dataset with a COCO-format ``json_file`` in its metadata.
        distributed: gather the predictions of all processes and evaluate in the main process.
        output_dir: the folder for the predictions, ``coco_instances_results.json``. None: do not
            write them.
        max_dets_per_image: evaluate this many detections per image and class, by score.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 300,
    ):
        super().__init__(
            dataset_name,
            tasks=("bbox",),
            distributed=distributed,
            output_dir=output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=False,
        )

    def _eval_predictions(self, predictions: list[dict], img_ids: list[int] | None = None) -> None:
        category_ids = {
            i: category_id
            for category_id, i in self._metadata.thing_dataset_id_to_contiguous_id.items()
        }
        detections = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        for detection in detections:
            detection["category_id"] = category_ids[detection["category_id"]]
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            with open_atomic(path) as file:
                json.dump(detections, file)
        ground_truth = self._coco_api.dataset["annotations"]
        if img_ids is not None:
            chosen = set(img_ids)
            ground_truth = [a for a in ground_truth if a["image_id"] in chosen]
            detections = [d for d in detections if d["image_id"] in chosen]
        results = box_ap_by_class(ground_truth, detections, self._max_dets_per_image[-1])
        self._logger.info("Evaluation results for bbox: \n%s", create_small_table(results))
        self._results["bbox"] = results


def box_ap_by_class(
    ground_truth: list[dict], detections: list[dict], max_dets: int = 300
) -> dict[str, float]:
    """Compute COCO's box AP with pycocotools, class by class.

    Time and memory grow with the annotations and detections, not with images times classes.

    Args:
        ground_truth: annotations of a COCO-format file.
        detections: records in COCO's result format.
        max_dets: evaluate this many detections per image and class, by score.

    Returns:
        AP, AP50, AP75, APs, APm and APl in percent; NaN without ground truth.
    """
    by_class = defaultdict(lambda: ([], []))
    for annotation in ground_truth:
        by_class[annotation["category_id"]][0].append(annotation)
    for detection in detections:
        by_class[detection["category_id"]][1].append(detection)
    by_class = {c: pair for c, pair in sorted(by_class.items()) if pair[0]}
    means = defaultdict(list)
    for pair in tqdm(by_class.values(), desc="box AP", unit="class", mininterval=5):
        for name, precision in _precision(*pair, max_dets).items():
            if (precision > -1).any():
                means[name].append(precision.mean())
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    return {name: 100 * float(np.mean(means[name])) if means[name] else np.nan for name in names}


def _precision(ground_truth: list[dict], detections: list[dict], max_dets: int) -> dict:
    """Return the precision of one class that each metric averages; -1 without ground truth."""
    evaluation = _OneClass(ground_truth, detections, max_dets)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, :, 0]  # threshold, recall, area
    areas = evaluation.params.areaRngLbl
    by_metric = {name: precision[:, :, areas.index(area)] for name, area in _AREAS.items()}
    by_metric["AP50"], by_metric["AP75"] = by_metric["AP"][0], by_metric["AP"][5]
    return by_metric


class _OneClass(COCOeval):
    def __init__(self, ground_truth: list[dict], detections: list[dict], max_dets: int):
        super().__init__(iouType="bbox")
        for annotation in ground_truth:
            x, y, width, height = annotation["bbox"]
            crowd = annotation.get("iscrowd", 0)
            annotation = {"area": width * height, **annotation, "iscrowd": crowd, "ignore": crowd}
            self._gts[annotation["image_id"], 0].append(annotation)
        for i, detection in enumerate(detections, start=1):
            _, _, width, height = detection["bbox"]
            detection = {**detection, "id": i, "area": width * height}
            self._dts[detection["image_id"], 0].append(detection)
        self.params.catIds = [0]
        self.params.imgIds = [image_id for image_id, _ in {**self._gts, **self._dts}]
        self.params.maxDets = [max_dets]

    def _prepare(self) -> None:
        """Do nothing: the constructor fills the records."""

    # Fast path: most images have detections of the class, but no ground truth.

    def computeIoU(self, imgId: int, catId: int):
        return super().computeIoU(imgId, catId) if self._gts[imgId, catId] else []

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> dict:
        if self._gts[imgId, catId]:
            return super().evaluateImg(imgId, catId, aRng, maxDet)
        detections = self._dts[imgId, catId]
        if len(detections) > 1:
            detections = sorted(detections, key=lambda d: -d["score"])[:maxDet]
        outside = np.array([not aRng[0] <= d["area"] <= aRng[1] for d in detections])
        shape = (len(self.params.iouThrs), len(detections))
        return {
            "dtScores": [d["score"] for d in detections],
            "dtMatches": np.broadcast_to(0.0, shape),
            "dtIgnore": np.broadcast_to(outside, shape),
            "gtIgnore": [],
        }
