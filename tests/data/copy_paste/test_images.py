"""Copy-paste in the training loader: any mapper, image and start; category lists; bad images."""

import logging
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools import mask as mask_utils

from apa_det.data import APADatasetMapper, CopyPaste, build_train_loader, large_scale_jitter
from apa_det.errors import UserError

HEIGHT, WIDTH = 24, 32
COLORS = {0: (250, 10, 20), 1: (30, 240, 40), 2: (50, 60, 230)}
BOXES = {0: (2, 3, 12, 9), 1: (10, 2, 20, 20), 2: (1, 1, 5, 30)}  # x0, y0, x1, y1
GRAY = (90, 91, 92)


def annotation(category, *, rle=False, masks=True):
    x0, y0, x1, y1 = BOXES[category]
    y1 = min(y1, HEIGHT)
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    result = {"bbox": [x0, y0, x1, y1], "bbox_mode": BoxMode.XYXY_ABS, "category_id": category}
    if masks:
        encoded = mask_utils.frPyObjects([polygon], HEIGHT, WIDTH)[0]
        result["segmentation"] = encoded if rle else [polygon]
    return result


def write(folder, name, *categories, mode="RGB", **keys):
    """Write an image with a rectangle per class in its color, and return its dataset dict."""
    pixels = np.full((HEIGHT, WIDTH, 3), GRAY, np.uint8)
    for category in categories:
        x0, y0, x1, y1 = BOXES[category]
        pixels[y0:y1, x0:x1] = COLORS[category]
    image = Image.fromarray(pixels)
    if mode == "16":
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    elif mode == "exif":
        image = image.transpose(Image.Transpose.ROTATE_90)  # and 6 rotates it back
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(folder / name, exif=exif)
    if mode != "exif":
        image.save(folder / name)
    size = {"height": HEIGHT, "width": WIDTH}
    annotations = [annotation(c, **keys) for c in categories]
    return {"file_name": str(folder / name), "image_id": name, **size, "annotations": annotations}


def mapper(kind=APADatasetMapper, augmentations=(), image_format="RGB", **keys):
    keys = {"use_instance_mask": True, **keys}
    return kind(True, augmentations=[*augmentations], image_format=image_format, **keys)


def samples(records, map_image=None, number=20, start=0, num_workers=0, seed=2, **keys):
    options = {"enabled": True, "prob": 1.0, "max_instances": 1, "scale": [1.0, 1.0], "flip": 0.0}
    names = {k: keys.pop(k) for k in ("dataset_names", "max_bad_images") if k in keys}
    loader = build_train_loader(
        records,
        mapper=map_image or mapper(),
        total_batch_size=1,
        seed=seed,
        num_workers=num_workers,
        copy_paste={**options, **keys},
        **names,
    )
    loader.start = start
    return [batch[0] for batch in islice(loader, number)]


def color(sample, index=-1):
    """Return the color of all pixels of an instance."""
    mask = sample["instances"].gt_masks.tensor[index]
    colors = sample["image"][:, mask].T.unique(dim=0).tolist()
    assert len(colors) == 1
    return tuple(colors[0])


class Other(APADatasetMapper):
    """A mapper whose samples cannot be made of crops of the files."""


MAPPERS = [
    lambda **keys: mapper(**keys),
    lambda **keys: mapper(Other, **keys),
    lambda **keys: mapper(DatasetMapper, instance_mask_format="bitmask", **keys),
    lambda **keys: mapper(instance_mask_format="bitmask", **keys),
    lambda **keys: mapper(augmentations=[T.RandomBrightness(1, 1)], **keys),
]


@pytest.mark.parametrize("make", MAPPERS)
@pytest.mark.parametrize("rle", [False, True])
def test_pasted_pixels_and_masks(make, rle, tmp_path):
    """Each pasted instance has its color and shape, wherever it lands."""
    if rle and make is MAPPERS[1]:
        rle = False
    records = [write(tmp_path, "a.png", 0, rle=rle), write(tmp_path, "b.png", 1, 2, rle=rle)]
    positions = set()
    for sample in samples(records, make(), number=40, min_visible=0.0):
        last = sample["instances"][-1]
        category = last.gt_classes.item()
        assert color(sample) == COLORS[category]
        x0, y0, x1, y1 = last.gt_boxes.tensor[0].tolist()
        width, height = (
            b - a for a, b in zip(BOXES[category][:2], BOXES[category][2:], strict=True)
        )
        assert (x1 - x0, y1 - y0) == (width, min(height, HEIGHT - BOXES[category][1]))
        assert last.gt_masks.tensor.sum().item() == (x1 - x0) * (y1 - y0)
        positions.add((x0, y0))
        covered = sample["instances"][:-1].gt_masks.tensor & last.gt_masks.tensor
        assert not covered.any()
    assert len(positions) > 25


@pytest.mark.parametrize(
    "image_format, mode, expected",
    [
        ("RGB", "RGB", COLORS[0]),
        ("BGR", "RGB", COLORS[0][::-1]),
        ("RGB", "exif", COLORS[0]),
        ("L", "16", (250,)),
        ("RGB", "16", (250, 250, 250)),
    ],
)
@pytest.mark.parametrize("kind", [APADatasetMapper, Other])
def test_formats(kind, image_format, mode, expected, tmp_path):
    """BGR, gray, 16 bits and EXIF orientation."""
    records = [write(tmp_path, "a.png", 0, mode=mode), write(tmp_path, "empty.png")]
    found = [
        color(sample)
        for sample in samples(records, mapper(kind, image_format=image_format), number=8)
        if sample["image_id"] == "empty.png"
    ]
    assert found == [expected] * len(found) and found


def test_resized_as_in_training(tmp_path):
    """The source is resized as its image would be; large instances are cut off."""
    records = [write(tmp_path, "a.png", 0), write(tmp_path, "empty.png")]
    for kind in (APADatasetMapper, Other):
        for resize in (T.ResizeShortestEdge(48, 1000), large_scale_jitter(64, (1.0, 1.0))):
            for sample in samples(records, mapper(kind, [resize]), number=6):
                x0, y0, x1, y1 = sample["instances"].gt_boxes.tensor[-1].tolist()
                assert (x1 - x0, y1 - y0) == (20, 12)
    (sample,) = samples(records[:1], number=1, scale=[40, 40], min_visible=0.0)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_empty_images_and_box_only_datasets(tmp_path):
    records = [write(tmp_path, "a.png", 1), write(tmp_path, "empty.png")]
    for sample in samples(records, number=6):
        assert isinstance(sample["instances"].gt_masks, BitMasks)
    records = [write(tmp_path, "a.png", 1, masks=False), write(tmp_path, "empty.png")]
    for kind in (APADatasetMapper, Other):
        boxes = samples(records, mapper(kind, use_instance_mask=False), number=6)
        for sample in boxes:
            assert {*sample["instances"].get_fields()} == {"gt_boxes", "gt_classes"}
            x0, y0, x1, y1 = sample["instances"].gt_boxes.tensor[-1].int().tolist()
            assert (x1 - x0, y1 - y0) == (10, 18)
            assert (sample["image"][:, y0:y1, x0:x1].numpy().T == COLORS[1]).all()


def test_untouched_images_keep_their_polygons(tmp_path):
    records = [write(tmp_path, "a.png", 0, 1)]
    kinds = {type(s["instances"].gt_masks) for s in samples(records, prob=0.5)}
    assert kinds == {PolygonMasks, BitMasks}
    assert {type(s["instances"].gt_masks) for s in samples(records, prob=0.0)} == {PolygonMasks}


def equal(a, b):
    same = torch.equal(a["image"], b["image"]) and a["image_id"] == b["image_id"]
    fields = a["instances"].get_fields().keys() == b["instances"].get_fields().keys()
    boxes = torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
    return same and fields and boxes


@pytest.mark.parametrize("kind", [APADatasetMapper, Other])
def test_resume_workers_and_cache(kind, tmp_path):
    """The same samples from another start, with other workers, and without memory for crops."""
    names = [write(tmp_path, f"{i}.png", i % 3, (i + 1) % 3, rle=True) for i in range(5)]
    crop = T.RandomCrop("relative_range", (0.6, 0.6))
    augmentations = [crop, T.ResizeShortestEdge([24, 36], 99, "choice"), T.RandomFlip()]
    keys = {"prob": 0.7, "max_instances": 3, "scale": [0.5, 2], "flip": 0.5, "blend": 1.0}
    expected = samples(names, mapper(kind, augmentations), **keys)
    others = [
        samples(names, mapper(kind, augmentations), 8, start=12, num_workers=2, **keys),
        samples(names, mapper(kind, augmentations), 8, start=12, cache_mb=0, **keys),
        samples(names, mapper(kind, augmentations), 8, start=12, cache_mb=0.001, **keys),
    ]
    for other in others:
        assert all(map(equal, other, expected[12:]))
    assert not all(
        map(equal, samples(names, mapper(kind, augmentations), seed=9, **keys), expected)
    )


def test_same_images_as_without(tmp_path):
    """Pasting changes neither the order of the images nor their augmentations."""
    records = [write(tmp_path, f"{i}.png", 0) for i in range(4)]
    flips = [T.RandomFlip()]
    with_paste = samples(records, mapper(augmentations=flips), min_visible=0.0)
    without = samples(records, mapper(augmentations=flips), prob=0.0)
    for a, b in zip(with_paste, without, strict=True):
        last = a["instances"][-1].gt_masks.tensor[0]
        assert torch.equal(a["image"][:, ~last], b["image"][:, ~last])


@pytest.fixture
def dataset_name():
    """A registered dataset whose classes 0, 1 and 2 have the category ids 90, 4 and 21."""
    names = ["copy_paste_test", "copy_paste_other"]
    for name, ids in zip(names, ([90, 4, 21], [90, 21, 4]), strict=True):
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            thing_classes=["a", "b", "c"],
            thing_dataset_id_to_contiguous_id={id: i for i, id in enumerate(ids)},
        )
    DatasetCatalog.register("copy_paste_nameless", list)
    yield names
    for name in [*names, "copy_paste_nameless"]:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    "negative, uncertain, expected",
    [
        ([90, 4], [], ([90], [])),  # a negative becomes a positive
        ([90], [], ([90], [4])),  # unknown before: there may be more of it
        ([90], [4], ([90], [4])),
        ([], [], ([], [4])),
        (None, [], (None, [])),  # all classes are exhaustively annotated
    ],
)
def test_category_lists(negative, uncertain, expected, tmp_path, dataset_name):
    records = [write(tmp_path, "source.png", 1), write(tmp_path, "empty.png")]
    records[1] |= {"not_exhaustive_category_ids": uncertain, "neg_category_ids": negative}
    if negative is None:
        del records[1]["neg_category_ids"]
        records[0]["not_exhaustive_category_ids"] = [90]  # so that the lists matter
    found = samples(records, dataset_names=dataset_name[0], number=6)
    found = [sample for sample in found if sample["image_id"] == "empty.png"]
    assert found and records[1].get("neg_category_ids") == negative
    for sample in found:
        assert sample["instances"].gt_classes.tolist() == [1]
        lists = sample.get("neg_category_ids"), sample["not_exhaustive_category_ids"]
        assert lists == expected


def test_category_lists_of_covered_classes(tmp_path, dataset_name):
    """Class 0 is covered too far, but a part is visible: it is not exhaustively annotated."""
    records = [write(tmp_path, "target.png", 0), write(tmp_path, "source.png", 1)]
    for record in records:
        record |= {"not_exhaustive_category_ids": [], "neg_category_ids": [21]}
    found = samples(records, dataset_names=dataset_name[0], number=40, min_visible=1.0)
    x0, y0, x1, y1 = BOXES[0]
    seen = set()
    for sample in found:
        if sample["image_id"] == "target.png":
            *others, pasted = sample["instances"].gt_classes.tolist()
            is_hidden = sample["instances"].gt_masks.tensor[-1, y0:y1, x0:x1].all().item()
            expected = [4] * (pasted == 1) + [90] * (not others and not is_hidden)
            assert sample["not_exhaustive_category_ids"] == expected
            assert sample["neg_category_ids"] == [21]
            seen.add((len(others), pasted))
    assert seen >= {(0, 1), (1, 0), (1, 1)}


def test_bad_sources_count_as_bad_images(tmp_path, caplog):
    records = [write(tmp_path, "a.png", 0), write(tmp_path, "b.png", 1)]
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="Cannot read the image .*b.png"):
        samples(records, number=30)
    with caplog.at_level(logging.WARNING):
        found = samples(records, max_bad_images=1, number=30)
    assert caplog.text.count("Bad image 1 of at most 1: replaced.") == 1
    assert {c for s in found for c in s["instances"].gt_classes.tolist()} == {0}
    assert {len(s["instances"]) for s in found} >= {1, 2}


def test_log(tmp_path, caplog):
    records = [write(tmp_path, "a.png", 0, 1), write(tmp_path, "b.png", 2)]
    with caplog.at_level(logging.INFO):
        samples(records, number=1)
        samples(records, mapper(Other), number=1)
    assert "3 instances of 3 classes can be pasted" in caplog.text
    assert (
        "crops of 3 of 3 classes, 100% of what is pasted, are kept in at most 128 MB" in caplog.text
    )
    assert "Other runs once more for each pasted instance" in caplog.text


class Extra(APADatasetMapper):
    """A mapper with an unknown field."""

    def __call__(self, record):
        sample = super().__call__(record)
        sample["instances"].weights = torch.ones(len(sample["instances"]))
        return sample


def test_refused(tmp_path, dataset_name):
    records = [write(tmp_path, "a.png", 0)]
    listed = [{**records[0], "neg_category_ids": [4]}]
    for arguments, keys, text in (
        ((records, mapper(use_keypoint=True)), {}, "does not work with keypoints: turn it off"),
        ((records, mapper(Extra)), {}, r"cannot paste into samples with weights \(Tensor\)"),
        (
            (records, lambda record: {"image": 1}),
            {},
            "needs samples with instances and a tensor image",
        ),
        ((listed,), {}, "needs the name of the dataset for it: set dataset_names"),
        ((listed,), {"dataset_names": dataset_name}, "copy_paste_other have other category ids"),
        (
            (records,),
            {"sampling": "x"},
            "COPY_PASTE.SAMPLING .* must be one of uniform, .* got 'x'",
        ),
        ((records,), {"scale": [2, 1]}, r"SCALE .* must be \(low, high\) with 0 < low <= high"),
        ((records,), {"prob": 1.5}, r"PROB .* must be in \[0, 1\]; got 1.5"),
        ((records,), {"max_instances": 0}, "MAX_INSTANCES .* must be >= 1; got 0"),
        ((records,), {"size": 0}, "dataloader.train.copy_paste has no key size; its keys are"),
    ):
        with pytest.raises(UserError, match=text):
            samples(*arguments, **keys)
    assert not CopyPaste.of(None).enabled
