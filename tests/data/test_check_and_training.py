"""What the check passes can be trained and evaluated on; what it reports cannot, or is suspicious.

Every example is a small dataset with changed values and damaged image files.
"""

import importlib.util
import json
import random
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apa_det.data import (
    APADatasetMapper,
    check_dataset,
    coco_to_lvis,
    load_lvis_format,
    read_coco_json,
)
from apa_det.errors import UserError
from apa_det.evaluation import GroundTruth, evaluate, read_results

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "scripts/fuzz_records.py"))
SUSPICIOUS = {  # kinds of problems that do not stop a training
    "no annotations",
    "boxes in another format",
    "empty box",
    "box outside its image",
    "empty mask",
    "unknown category in neg_category_ids",
    "unknown category in not_exhaustive_category_ids",
    "annotated category in neg_category_ids",
}
AUGMENTATIONS = [T.RandomFlip(), T.ResizeShortestEdge((30, 90), 100, "choice")]
CROP = [T.RandomCrop("relative_range", (0.3, 0.3))]


REFUSED = {"truncated", "empty", "missing", "text", "rotated", "too wide", "large integers", "F"}


def make_dataset(seed=0):
    """Return a small dataset without problems, with masks of all kinds."""
    dataset, _ = FUZZ["make_dataset"](seed)
    for image in dataset["images"]:
        present = {a["category_id"] for a in dataset["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = sorted({*FUZZ["CATEGORIES"]} - present)
    return dataset


def save(image, path, **keys):
    """Save an image with the type of file that its pixels need, under any name."""
    kind = {"F": "TIFF", "I": "TIFF", "I;16B": "TIFF", "CMYK": "JPEG"}.get(image.mode, "PNG")
    image.save(path, kind, **keys)


def rotated(size):
    exif = Image.Exif()
    exif[0x0112] = 6
    return lambda path: Image.new("RGB", size).save(path, "JPEG", exif=exif)


DAMAGES = {
    "truncated": lambda size: lambda path: path.write_bytes(path.read_bytes()[:100]),
    "cut off at the end": lambda size: lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda size: lambda path: path.write_bytes(b""),
    "missing": lambda size: lambda path: path.unlink(),
    "text": lambda size: lambda path: path.write_text("not an image"),
    "rotated": rotated,
    "too wide": lambda size: lambda path: save(Image.new("L", (size[0] + 1, size[1])), path),
    "large integers": lambda size: lambda path: save(Image.new("I", size, 70_000), path),
    **{
        mode: lambda size, mode=mode: lambda path: save(Image.new(mode, size), path)
        for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F")
    },
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images with noise."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for image_id, size in FUZZ["SIZES"].items():
        noise = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{image_id}.png")
    return folder


def write(images, folder, damages):
    for image in images.iterdir():
        shutil.copy(image, folder)
    for image_id, damage in damages.items():
        height, width = FUZZ["SIZES"][image_id]
        DAMAGES[damage]((width, height))(folder / f"{image_id}.png")


def train_and_evaluate(file, folder, seed):
    """Load the dataset, map every image, and evaluate the ground truth as results."""
    records = load_lvis_format(file, folder)
    np.random.seed(seed)
    has_masks = any("segmentation" in a for r in records for a in r["annotations"])
    can_crop = importlib.util.find_spec("shapely") or not has_masks
    for mask_format in ("polygon", "bitmask"):
        for crop in (False, True) if can_crop else (False,):
            mapper = APADatasetMapper(
                True,
                augmentations=(CROP if crop else []) + AUGMENTATIONS,
                image_format="BGR",
                use_instance_mask=has_masks,
                instance_mask_format=mask_format,
                recompute_boxes=crop and has_masks,
            )
            for record in records:
                sample = mapper(record)
                height, width = sample["image"].shape[1:]
                instances = sample["instances"]
                boxes = instances.gt_boxes.tensor.numpy()
                assert np.isfinite(boxes).all() and (boxes >= 0).all()
                assert (boxes <= [width, height, width, height]).all() or crop
                if has_masks and len(instances):
                    targets = instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, 14)
                    assert targets.shape == (len(instances), 14, 14)
    truth = GroundTruth.from_file(file)
    dataset = json.loads(file.read_text())
    keys = ("image_id", "category_id", "bbox", *["segmentation"] * has_masks)
    results = [{key: a[key] for key in keys} | {"score": 0.5} for a in dataset["annotations"]]
    path = folder / "results.json"
    path.write_text(json.dumps(results))
    try:
        detections = read_results(path, truth)
    except UserError:  # e.g. boxes of negative size, which only results must not have
        return
    for iou_type in ("bbox", "segm") if has_masks else ("bbox",):
        evaluate(truth, detections, iou_type)


def assert_agreement(file, folder, seed):
    report = check_dataset(file, folder)
    kinds = {problem.kind for problem in report.problems}
    try:
        train_and_evaluate(file, folder, seed)
    except UserError as error:
        assert kinds - SUSPICIOUS, f"the check passes it, but: {error}"
        assert len(str(error).splitlines()) == 1
    else:
        assert kinds <= SUSPICIOUS, f"it can be trained, but: {report.problems}"


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    mutations=st.integers(0, 2),
    coco=st.booleans(),
    without_masks=st.booleans(),
    damages=st.dictionaries(
        st.sampled_from(list(FUZZ["SIZES"])), st.sampled_from(list(DAMAGES)), max_size=1
    ),
)
def test_check_and_training_agree(
    seed, mutations, coco, without_masks, damages, images, tmp_path_factory
):
    folder = tmp_path_factory.getbasetemp() / "agreement"
    folder.mkdir(exist_ok=True)
    rng = random.Random(seed)
    dataset = make_dataset(rng.randrange(3))
    if without_masks:
        for annotation in dataset["annotations"]:
            del annotation["segmentation"]
    if coco:
        for image in dataset["images"]:
            del image["neg_category_ids"], image["not_exhaustive_category_ids"]
        dataset["annotations"][0]["iscrowd"] = 1
    for _ in range(mutations):
        FUZZ["mutate"](dataset[rng.choice(FUZZ["TABLES"])], rng)
    write(images, folder, damages)
    file = folder / "dataset.json"
    file.write_text(json.dumps(dataset))
    if coco:
        try:
            dataset = coco_to_lvis(read_coco_json(file))
        except UserError:
            return  # checked in test_mutated_records.py
        file.write_text(json.dumps(dataset))
    assert_agreement(file, folder, seed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_image(damage, images, tmp_path):
    """Each kind of damage is either reported and refused, or neither."""
    dataset = make_dataset()
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps(dataset))
    write(images, tmp_path, {12: damage})
    assert_agreement(file, tmp_path, 0)
    problems = check_dataset(file, tmp_path).problems
    assert bool(problems) == (damage in REFUSED)
