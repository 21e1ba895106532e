"""detectron2's test-time augmentation with the heads, scores and calibrations of apa_det."""

import json

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.layers import batched_nms
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from apa_det.engine import read_config

HEIGHT, WIDTH = 64, 96
PIXELS = {"rtol": 0, "atol": 1e-4}  # rounding of float32 box coordinates


@pytest.fixture(autouse=True)
def training_set(tmp_path):
    """Images of the classes of the model; class 0 fills them."""
    numbers = 100, 30, 10, 1
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 100} for i in range(150)]
    annotations = [
        {"image_id": i, "category_id": c, "bbox": [i % 10 * 10, i // 10 * 10, 8, 8]}
        for c, number in enumerate(numbers)
        for i in range(number)
    ]
    content = {
        "images": images,
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations)],
        "categories": [{"id": c, "name": str(c)} for c in range(4)],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    MetadataCatalog.get("augmentation_train").set(
        json_file=str(path),
        class_image_count=[{"id": c, "image_count": n} for c, n in enumerate(numbers)],
        thing_dataset_id_to_contiguous_id={c: c for c in range(4)},
    )
    yield
    MetadataCatalog.remove("augmentation_train")


@pytest.fixture
def make(arguments):
    def make(cascade, score, calibration, sizes=(HEIGHT,), flip=False):
        heads = "APACascadeROIHeads" if cascade else "APAROIHeads"
        options = [
            *("MODEL.ROI_HEADS.NAME", heads, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", cascade),
            *("MODEL.ROI_BOX_HEAD.CLASS_SCORE", score, "DATASETS.TRAIN", ("augmentation_train",)),
            *("MODEL.ROI_MASK_HEAD.NAME", "APAMaskRCNNConvUpsampleHead"),
            *("MODEL.ROI_MASK_HEAD.THRESHOLD", 0.4, "TEST.DETECTIONS_PER_IMAGE", 10),
            *("TEST.AUG.MIN_SIZES", sizes, "TEST.AUG.FLIP", flip),
        ]
        if calibration:
            options += ["MODEL.ROI_BOX_HEAD.CALIBRATION", calibration]
            options += ["MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH", 0.7]
        torch.manual_seed(0)
        args = arguments(*options)
        cfg = read_config(args.config_file, args.opts)
        model = build_model(cfg).eval()
        for name, parameter in model.named_parameters():
            if "cls_score.weight" in name or "predictor.weight" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        return model, GeneralizedRCNNWithTTA(cfg, model)

    return make


def random_image():
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    return {"image": image, "height": HEIGHT, "width": WIDTH}


@pytest.mark.parametrize(
    "cascade, score, calibration",
    [
        (False, "softmax", "NorCal"),
        (True, "gumbel", "LogitAdjustment"),
        (False, "apa", "TauNorm"),
        (False, "softmax", "FRACAL"),
        (True, "apa", "FRACAL"),
        (True, "sigmoid", ""),
    ],
)
@torch.no_grad()
def test_one_view_is_plain_inference(make, cascade, score, calibration):
    model, augmented = make(cascade, score, calibration)
    inputs = [random_image()]
    (plain,), (ours,) = (m(inputs) for m in (model, augmented))
    plain, ours = plain["instances"], ours["instances"]
    assert len(plain) > 0
    torch.testing.assert_close(ours.scores, plain.scores)
    assert torch.equal(ours.pred_classes, plain.pred_classes)
    torch.testing.assert_close(ours.pred_boxes.tensor, plain.pred_boxes.tensor)
    assert torch.equal(ours.pred_masks, plain.pred_masks)
    assert 0 < plain.pred_masks.float().mean() < 1


@torch.no_grad()
def test_two_views_are_merged_and_their_masks_averaged(make):
    """By hand: the boxes of the flipped image are flipped back and go through one NMS with the
    others; mask probabilities are averaged before the threshold."""
    model, augmented = make(False, "apa", "NorCal", flip=True)
    inputs = random_image()
    ours = augmented([inputs])[0]["instances"]

    views = [inputs, {**inputs, "image": inputs["image"].flip(2)}]
    detections = [model.inference([view], do_postprocess=False)[0] for view in views]
    boxes = [d.pred_boxes.tensor.clone() for d in detections]
    boxes[1][:, [0, 2]] = WIDTH - boxes[1][:, [2, 0]]
    boxes = torch.cat(boxes)
    scores = torch.cat([d.scores for d in detections])
    classes = torch.cat([d.pred_classes for d in detections])
    keep = batched_nms(boxes, scores, classes, 0.5)[:10]
    merged = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes[keep]), scores=scores[keep])
    merged.pred_classes = classes[keep]
    flipped = boxes[keep].clone()
    flipped[:, [0, 2]] = WIDTH - flipped[:, [2, 0]]
    masks = []
    for view, view_boxes in zip(views, (boxes[keep], flipped), strict=True):
        given = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(view_boxes), scores=scores[keep])
        given.pred_classes = classes[keep]
        (result,) = model.inference([view], [given], do_postprocess=False)
        masks.append(result.pred_masks)
    merged.pred_masks = (masks[0] + masks[1].flip(3)) / 2
    merged = detector_postprocess(merged, HEIGHT, WIDTH)

    torch.testing.assert_close(ours.scores, merged.scores)
    assert torch.equal(ours.pred_classes, merged.pred_classes)
    torch.testing.assert_close(ours.pred_boxes.tensor, merged.pred_boxes.tensor, **PIXELS)
    assert torch.equal(ours.pred_masks, merged.pred_masks)


@torch.no_grad()
def test_boxes_and_masks_have_the_size_of_the_original_image(make):
    """The loader has resized the image to the input's size; boxes scale with the original."""
    _, augmented = make(True, "gumbel", "NorCal", sizes=(64, 80), flip=True)
    inputs = random_image()
    resized = {**inputs, "height": 2 * HEIGHT, "width": 2 * WIDTH}
    same_size, twice = (augmented([image])[0]["instances"] for image in (inputs, resized))
    assert len(same_size) > 0
    torch.testing.assert_close(twice.pred_boxes.tensor, 2 * same_size.pred_boxes.tensor, **PIXELS)
    torch.testing.assert_close(twice.scores, same_size.scores)
    assert torch.equal(twice.pred_classes, same_size.pred_classes)
    assert twice.pred_masks.shape == (len(twice), 2 * HEIGHT, 2 * WIDTH)
    areas = (instances.pred_masks.float().mean(dim=(1, 2)) for instances in (twice, same_size))
    torch.testing.assert_close(*areas, rtol=0, atol=0.02)


@torch.no_grad()
def test_no_detections(make):
    model, augmented = make(False, "apa", "", flip=True)
    model.roi_heads.box_predictor.test_score_thresh = 1.1
    assert len(augmented([random_image()])[0]["instances"]) == 0
