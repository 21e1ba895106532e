"""A small dataset with images, and the results of two detectors."""

import json
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest

from apa_det.data import generate_dataset
from apa_det.utils.json_files import read_json


def perturbed(dataset, rng):
    """Return results for most objects, well or badly localized, with false positives.

    Scores have ties. All values are JSON types.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    categories = [category["id"] for category in dataset["categories"]]
    results = []
    for annotation in dataset["annotations"]:
        for shift in (2, 12)[rng.random() < 0.2 : 1 + (rng.random() < 0.5)]:
            polygons = [
                (np.array(p).reshape(-1, 2) + rng.normal(0, shift, 2)).ravel().tolist()
                for p in annotation["segmentation"]
            ]
            rles = mask_util.frPyObjects(polygons, *sizes[annotation["image_id"]])
            mask = mask_util.merge(rles)
            wrong = shift > 2 and rng.random() < 0.5
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": int(rng.choice(categories))
                    if wrong
                    else annotation["category_id"],
                    "bbox": mask_util.toBbox(mask).tolist(),
                    "score": round(float(rng.random()), 2),
                    "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
                }
            )
    return results


@pytest.fixture(scope="session")
def detections_on_synthetic(tmp_path_factory):
    """Paths of the ground truth, of the image folder, and of two result files in one folder."""
    folder = tmp_path_factory.mktemp("synthetic")
    gt = generate_dataset(folder, num_train=60, num_val=24, num_classes=12, image_size=96)["val"]
    rng = np.random.default_rng(0)
    results = [folder / "first.json", folder / "second.json"]
    for path in results:
        path.write_text(json.dumps(perturbed(read_json(gt), rng)))
    return SimpleNamespace(gt=gt, image_root=folder, results=results)
