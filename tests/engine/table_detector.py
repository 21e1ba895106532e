"""A detector that returns stored detections, and datasets whose classes have other ids."""

import copy
import json

import numpy as np
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import nn

SIZE = 400  # rows; those of image -1 are unused


@META_ARCH_REGISTRY.register()
class TableDetector(nn.Module):
    """Its only parameter has rows (image id, class index, score, x0, y0, x1, y1)."""

    def __init__(self, cfg=None):
        super().__init__()
        self.table = nn.Parameter(torch.full((SIZE, 7), -1.0))

    def forward(self, inputs):
        if self.training:
            return {"loss": 0 * self.table.sum()}
        return [{"instances": self._detect(x)} for x in inputs]

    def _detect(self, x) -> Instances:
        rows = self.table.detach()[self.table[:, 0] == x["image_id"]]
        result = Instances((x["height"], x["width"]))
        result.pred_boxes = Boxes(rows[:, 3:])
        result.scores = rows[:, 2]
        result.pred_classes = rows[:, 1].long()
        result.pred_masks = torch.zeros(len(rows), x["height"], x["width"], dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(result.pred_masks, rows[:, 3:].long(), strict=True):
            mask[y0:y1, x0:x1] = True
        return result


def detections(dataset: dict, seed: int = 0) -> list[tuple[int, str, float, list[float]]]:
    """Return (image, name, score, box) of shifted ground truth, some with another name."""
    rng = np.random.default_rng(seed)
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    result = []
    for annotation in dataset["annotations"]:
        x, y, width, height = annotation["bbox"]
        corner = np.clip(np.round([x, y] + rng.normal(0, 1, 2)), 0, 60)
        box = [*corner, *np.clip(corner + np.round([width, height]), corner + 1, 64)]
        name = names[annotation["category_id"]]
        if rng.random() < 0.3:
            name = str(rng.choice([*names.values()]))
        result.append((annotation["image_id"], name, round(float(rng.random()), 3), box))
    return result


def save_detector(path, rows: list, names: list[str], stored: bool = True) -> None:
    """Save a checkpoint of the detector, whose classes have these names in this order."""
    table = torch.full((SIZE, 7), -1.0)
    for i, (image_id, name, score, box) in enumerate(rows):
        table[i] = torch.tensor([image_id, names.index(name), score, *box])
    torch.save({"model": {"table": table}} | ({"class_names": names} if stored else {}), path)


def relabeled(dataset: dict, ids: dict[str, int], rename: dict[str, str] | None = None) -> dict:
    """Return a dataset with only the categories named in ``ids``, under these ids."""
    dataset = copy.deepcopy(dataset)
    new = {c["id"]: ids[c["name"]] for c in dataset["categories"] if c["name"] in ids}
    dataset["categories"] = [
        {**c, "id": new[c["id"]], "name": (rename or {}).get(c["name"], c["name"])}
        for c in dataset["categories"]
        if c["id"] in new
    ]
    dataset["annotations"] = [
        {**a, "category_id": new[a["category_id"]]}
        for a in dataset["annotations"]
        if a["category_id"] in new
    ]
    for image in dataset["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [new[i] for i in image[key] if i in new]
    return dataset


def as_coco(dataset: dict) -> dict:
    """Return a dataset in LVIS format in COCO format."""
    dataset = copy.deepcopy(dataset)
    for image in dataset["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for annotation in dataset["annotations"]:
        annotation["iscrowd"] = 0
    return dataset


def result_records(dataset: dict, rows: list) -> list[dict]:
    """Return the detections of the dataset's classes in the format of LVIS and COCO results."""
    ids = {category["name"]: category["id"] for category in dataset["categories"]}
    return [
        {
            "image_id": image_id,
            "category_id": ids[name],
            "score": float(np.float32(score)),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        for image_id, name, score, (x0, y0, x1, y1) in rows
        if name in ids
    ]


def write(path, content) -> str:
    path.write_text(json.dumps(content))
    return str(path)
