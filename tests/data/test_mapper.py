"""Samples of the mapper: polygons as in detectron2, RLE as bitmaps, images of 16 bits."""

import copy
import logging
import sys

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from detectron2.utils.events import EventStorage
from PIL import Image
from pycocotools import mask as mask_utils

from apa_det import add_apa_config
from apa_det.data import APADatasetMapper, build_train_loader
from apa_det.errors import MissingFileError, MissingPackageError, UserError

HEIGHT, WIDTH = 48, 64
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
AUGMENTATIONS = {
    "none": [],
    "resize": [T.ResizeShortestEdge(96, 200)],
    "flip": [T.RandomFlip(prob=1.0)],
    "crop": [T.RandomCrop("absolute", (30, 40)), T.RandomFlip(), T.Resize((60, 80))],
}


@pytest.fixture
def path(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "x.png")
    return str(tmp_path / "x.png")


def rectangle(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def rle(polygon):
    return mask_utils.frPyObjects([polygon], HEIGHT, WIDTH)[0]


BOXES = [(4, 6, 20, 30), (30, 10, 12, 8), (40, 30, 20, 16), (8, 2, 40, 40)]


def record(path, kinds, **keys):
    """Return a dataset dict; of each kind of mask, one instance: p(olygon), r(le), c(rowd)."""
    annotations = []
    for kind, box in zip(kinds, BOXES, strict=False):
        polygon = rectangle(*box)
        annotation = {
            "bbox": box,
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": len(annotations) % 3,
            "iscrowd": int(kind == "c"),
        }
        if kind != "-":
            annotation["segmentation"] = [polygon] if kind == "p" else rle(polygon)
        annotations.append(annotation)
    size = {"height": HEIGHT, "width": WIDTH, "image_id": 1}
    return {"file_name": path, **size, "annotations": annotations, **keys}


def mappers(augmentation="none", mask_format="polygon", **keys):
    arguments = {
        "augmentations": AUGMENTATIONS[augmentation],
        "image_format": "RGB",
        "use_instance_mask": True,
        "instance_mask_format": mask_format,
        "recompute_boxes": augmentation == "crop",
        **keys,
    }
    return [kind(True, **arguments) for kind in (APADatasetMapper, DatasetMapper)]


def mapped(mapper, sample):
    np.random.seed(3)
    try:
        return mapper(sample)
    except ImportError:
        pytest.importorskip("shapely")
        raise


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    a, b = ours["instances"], theirs["instances"]
    assert a.get_fields().keys() == b.get_fields().keys()
    assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
    assert torch.equal(a.gt_classes, b.gt_classes)
    assert type(a.gt_masks) is type(b.gt_masks)
    if isinstance(a.gt_masks, BitMasks):
        assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor)
    else:
        for x, y in zip(a.gt_masks.polygons, b.gt_masks.polygons, strict=True):
            assert all(map(np.array_equal, x, y)) and len(x) == len(y)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize(
    "kinds, mask_format", [("pppp", "polygon"), ("pcpc", "polygon"), ("prpr", "bitmask")]
)
def test_equals_detectron2(augmentation, kinds, mask_format, path):
    """Also with RLE crowds, which are not trained."""
    ours, theirs = mappers(augmentation, mask_format)
    sample = record(path, kinds)
    before = copy.deepcopy(sample)
    assert_equal(mapped(ours, sample), mapped(theirs, sample))
    assert sample == before


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("kinds", ["rrrr", "prpr", "rppp", "pcrp"])
def test_rle_with_polygon_format(augmentation, kinds, path):
    """The sample is that of detectron2 with bitmaps."""
    ours, _ = mappers(augmentation, "polygon")
    _, theirs = mappers(augmentation, "bitmask")
    sample = record(path, kinds)
    assert_equal(mapped(ours, sample), mapped(theirs, sample))
    assert ours.instance_mask_format == "polygon"
    assert isinstance(mapped(ours, record(path, "pp"))["instances"].gt_masks, PolygonMasks)


def test_masks_of_rle_are_exact(path):
    ours, _ = mappers()
    masks = ours(record(path, "rr"))["instances"].gt_masks.tensor.numpy()
    for mask, (x, y, width, height) in zip(masks, BOXES, strict=False):
        expected = np.zeros((HEIGHT, WIDTH), bool)
        expected[y : y + height, x : x + width] = True
        assert (mask == expected).all()


def test_test_samples_keep_no_annotations(path):
    ours, theirs = (kind(False, augmentations=[], image_format="BGR") for kind in KINDS)
    a, b = ours(record(path, "prc")), theirs(record(path, "prc"))
    assert a.keys() == b.keys() and torch.equal(a["image"], b["image"])


KINDS = (APADatasetMapper, DatasetMapper)


def test_semantic_labels_and_proposals(path, tmp_path):
    """Labels of 16 bits are not divided by 257."""
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 200
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "labels.png")
    sample = record(
        path,
        "pp",
        sem_seg_file_name=str(tmp_path / "labels.png"),
        proposal_boxes=np.array([[0.0, 0, 9, 9], [5, 5, 70, 70]]),
        proposal_objectness_logits=np.array([2.0, 1.0]),
        proposal_bbox_mode=BoxMode.XYXY_ABS,
    )
    ours, theirs = (mapped(m, sample) for m in mappers("flip", precomputed_proposal_topk=1))
    assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
    assert (ours["sem_seg"].numpy() == labels[:, ::-1]).all()
    a, b = ours.pop("proposals"), theirs.pop("proposals")
    assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor) and len(a) == 1
    assert_equal(ours, theirs)


def test_image_of_16_bits(path, tmp_path):
    gray = NOISE[:, :, 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "16.png")
    image = mappers()[0](record(str(tmp_path / "16.png"), "p"))["image"]
    assert (image.numpy() == gray).all()


def test_invalid_image(path):
    ours, _ = mappers()
    with pytest.raises(MissingFileError, match="There is no image nowhere.png"):
        ours(record("nowhere.png", "p"))
    text = f"{path} is 64 x 48, but annotated as 64 x 50: fix its width and height"
    with pytest.raises(UserError, match=text):
        ours(record(path, "p", height=50))


def test_narrow_image(tmp_path):
    path = str(tmp_path / "narrow.png")
    Image.new("L", (1, 9000)).save(path)
    ours, theirs = mappers("resize")
    with pytest.raises(UserError, match=f"The image {path} of 1 x 9000 pixels is too narrow"):
        ours(record(path, "", height=9000, width=1))
    with pytest.raises(ValueError, match="must be > 0"):
        theirs(record(path, "", height=9000, width=1))


def config(mask_format):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.ROI_HEADS.NAME = "APAROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_BOX_HEAD.NAME = "APAFastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "APAMaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    return cfg


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_losses_of_mixed_images(mask_format, path):
    """The losses of images with polygons, RLE and both, in one batch, are those of bitmaps.

    The targets of the mask head differ a little: polygons are not drawn as bitmaps first.
    """
    cfg = config(mask_format)
    torch.manual_seed(0)
    model = build_model(cfg)
    mapper = APADatasetMapper(cfg)
    losses = {}
    for kinds in (["pppp", "rrrr", "prpr", "prcp"], ["rrrr"] * 3 + ["rrcr"]):
        batch = [mapped(mapper, record(path, k)) for k in kinds]
        torch.manual_seed(1)
        with EventStorage():
            losses[kinds[0]] = model(batch)
    for name, loss in losses["pppp"].items():
        tolerance = 0.02 if name == "loss_mask" else 1e-6
        assert loss.item() == pytest.approx(losses["rrrr"][name].item(), rel=tolerance), name


def loader(records, mask_format="polygon", **keys):
    mapper = mappers(mask_format=mask_format, **keys)[0]
    return build_train_loader(records, mapper=mapper, total_batch_size=1)


def test_cropping_polygons_without_shapely(path, monkeypatch):
    for name in ("shapely", "shapely.geometry"):
        monkeypatch.setitem(sys.modules, name, None)
    ours, _ = mappers("crop")
    with pytest.raises(MissingPackageError, match="needs shapely: pip install shapely"):
        ours(record(path, "pr"))
    assert len(ours(record(path, "rr"))["instances"])


def test_log_line_about_rle(path, caplog):
    records = [record(path, kinds) for kinds in ("pp", "rp", "rr", "pc")]
    with caplog.at_level(logging.INFO):
        loader(records)
    assert "2 images have RLE masks: all their masks are used as bitmaps." in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        loader(records, "bitmask")
        loader([records[0], records[3]])
    assert "RLE" not in caplog.text


@pytest.mark.parametrize("kinds", [["--"], ["pp", "--"], ["p-"], ["-r"]])
def test_annotation_without_mask(kinds, path):
    """One sentence before training."""
    records = [record(path, k) for k in kinds]
    with pytest.raises(UserError, match=f"the image {path} has no segmentation, but .*MASK_ON"):
        loader(records)
    loader(records, use_instance_mask=False)
    loader([{"file_name": path, "height": HEIGHT, "width": WIDTH}])  # no annotations at all
