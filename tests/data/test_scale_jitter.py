"""Large-scale jitter: scales, crops and padding, and the masks and boxes after them."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode
from PIL import Image
from pycocotools import mask as mask_utils

from apa_det import add_apa_config
from apa_det.config import check_values
from apa_det.data import APADatasetMapper, large_scale_jitter
from apa_det.errors import UserError

HEIGHT, WIDTH = 40, 60
L_SHAPE = [5, 5, 45, 5, 45, 15, 15, 15, 15, 35, 5, 35]  # not convex


def config(*opts, masks=True):
    cfg = get_cfg()
    add_apa_config(cfg)
    cfg.MODEL.MASK_ON = masks
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.LSJ.ENABLED = True
    cfg.merge_from_list(["INPUT.LSJ.SIZE", 50, *opts])
    return cfg


@pytest.fixture
def make_record(tmp_path):
    def make(kind="polygon"):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        mask = mask_utils.decode(mask_utils.frPyObjects([L_SHAPE], HEIGHT, WIDTH))[..., 0]
        pixels[mask > 0] = 255
        Image.fromarray(pixels).save(tmp_path / "x.png")
        instance = {"bbox": [5, 5, 45, 35], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        rle = mask_utils.encode(np.asfortranarray(mask))
        if kind != "boxes":
            instance["segmentation"] = [L_SHAPE] if kind == "polygon" else rle
        size = {"height": HEIGHT, "width": WIDTH}
        return {"file_name": str(tmp_path / "x.png"), **size, "annotations": [instance]}

    return make


@pytest.mark.parametrize("scale", [[0.5, 0.5], [2.0, 2.0], [0.3, 2.0]])
@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_masks_follow_the_pixels(kind, scale, make_record):
    """The mask is where the image is white; the box is tight; the padding is in no mask."""
    mapper = APADatasetMapper(config("INPUT.LSJ.SCALE", scale))
    for seed in range(8):
        np.random.seed(seed)
        sample = mapper(make_record(kind))
        image, instances = sample["image"], sample["instances"]
        assert image.shape == (3, 50, 50)
        if not len(instances):
            continue
        assert isinstance(instances.gt_masks, BitMasks)
        mask = instances.gt_masks.tensor[0]
        assert (mask != (image[0] > 128)).float().sum() <= 0.35 * mask.sum() + 4
        assert not mask[(image == 128).all(0)].any() or scale != [0.5, 0.5]
        y, x = mask.nonzero().T
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert instances.gt_boxes.tensor[0].tolist() == [int(v) for v in box]


def test_scale_and_padding(make_record):
    """At half the scale, 60 × 40 pixels become 25 × 17, at the top left."""
    image = APADatasetMapper(config("INPUT.LSJ.SCALE", [0.5, 0.5]))(make_record())["image"]
    padding = (image == 128).all(0)
    assert padding[17:].all() and padding[:, 25:].all()
    assert padding[:17, :25].float().mean() < 0.05


def test_boxes_only(make_record):
    """Boxes that are cropped away are dropped, the others are clipped."""
    mapper = APADatasetMapper(config("INPUT.LSJ.SCALE", [4.0, 4.0], masks=False))
    numbers = set()
    for seed in range(20):
        np.random.seed(seed)
        instances = mapper(make_record("boxes"))["instances"]
        numbers.add(len(instances))
        boxes = instances.gt_boxes.tensor
        assert (boxes >= 0).all() and (boxes <= 50).all()
    assert 1 in numbers


def test_semantic_labels_keep_their_padding(make_record, tmp_path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 3, np.uint8)).save(tmp_path / "labels.png")
    record = {**make_record("rle"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    sample = APADatasetMapper(config("INPUT.LSJ.SCALE", [0.5, 0.5]))(record)
    assert sample["sem_seg"].unique().tolist() == [3, 255]
    assert (sample["sem_seg"][17:] == 255).all()


def test_rle_is_not_padded_with_other_padding(make_record):
    """Also with detectron2's augmentation."""
    crop = T.FixedSizeCrop((80, 80))
    mapper = APADatasetMapper(
        True, augmentations=[crop], image_format="RGB", use_instance_mask=True
    )
    mask = mapper(make_record("rle"))["instances"].gt_masks.tensor[0]
    assert not mask[HEIGHT:].any() and not mask[:, WIDTH:].any() and mask.any()


def test_keys():
    """Only in training; the flip comes first, and cropping twice is refused."""
    cfg = config()
    (jitter,) = APADatasetMapper.from_config(cfg)["augmentations"]
    flip, resize, crop = jitter.augs
    assert isinstance(flip, T.RandomFlip) and isinstance(crop, T.FixedSizeCrop)
    assert (resize.min_scale, resize.max_scale) == (0.1, 2.0) and crop.crop_size == (50, 50)
    assert [type(a) for a in large_scale_jitter().augs] == [type(a) for a in jitter.augs]
    (resize,) = APADatasetMapper.from_config(cfg, False)["augmentations"]
    assert isinstance(resize, T.ResizeShortestEdge)
    cfg.INPUT.CROP.ENABLED = True
    with pytest.raises(UserError, match="INPUT.CROP.ENABLED must be False with INPUT.LSJ.ENABLED"):
        check_values(cfg)
