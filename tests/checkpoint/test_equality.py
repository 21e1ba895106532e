"""Compare converted detectors with the published ones, written out in published/."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from apa_det.checkpoint import convert

SIZE = 75, 161  # no multiple of 32
CASES = {
    "mask_R_50": dict(num_classes=60),
    "mask_R_101": dict(num_classes=20, depth=101, temperature=20.0),
    "mask_R_50_cbam_per_channel": dict(num_classes=5, gate="cbam", per_channel=True),
    "mask_R_50_cbam_sigmoid": dict(num_classes=5, gate="cbam_sigmoid"),
    "mask_R_50_spatial": dict(num_classes=5, gate="spatial"),
    "fracal_R_50": dict(num_classes=60, classifier="normed_softmax", gate="none", aglu=False),
    "fracal_R_101": dict(
        num_classes=60,
        depth=101,
        classifier="normed_softmax",
        gate="none",
        aglu=False,
        temperature=20.0,
        carafe=True,
    ),
    "coco_R_50": dict(num_classes=80, classifier="softmax", temperature="none"),
    "v3det_faster_R_50": dict(num_classes=300, classifier="wrapped_cauchy", masks=False),
    "v3det_cascade_R_50": dict(
        num_classes=300, classifier="wrapped_cauchy", cascade=True, masks=False
    ),
    "v3det_cascade_plain_se": dict(
        num_classes=300,
        gate="plain_se",
        aglu=False,
        classifier="wrapped_cauchy",
        cascade=True,
        masks=False,
    ),
    "v3det_mask_normed": dict(
        num_classes=100, gate="none", aglu=False, classifier="normed_sigmoid", temperature=50.0
    ),
    "cascade_masks": dict(
        num_classes=20, classifier="normed_sigmoid", cascade=True, temperature=20.0
    ),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, published, make_cfg):
    """The published detector, and ours converted from it."""
    theirs = published.randomize(published.Detector(**CASES[request.param]))
    ours = build_model(make_cfg(**CASES[request.param])).eval()
    conversion = convert({"state_dict": theirs.state_dict()}, ours)
    conversion.check()
    result = ours.load_state_dict(conversion.state, strict=False)
    assert not result.missing_keys
    assert all(name.endswith("num_batches_tracked") for name in result.unexpected_keys)
    return theirs, ours


def make_image(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), generator=generator).float()


def make_boxes(size, count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1)[0]
    return (corners * torch.tensor([size[1], size[0]])).flatten(1)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_outputs(pair, published):
    theirs, ours = pair
    image = make_image(SIZE)
    maps = theirs.maps(image)
    images = ours.preprocess_image([{"image": image}])
    features = ours.backbone(images.tensor)
    for level, expected in zip(("p2", "p3", "p4", "p5", "p6"), maps, strict=True):
        assert_close(features[level], expected)

    head = ours.proposal_generator.rpn_head
    for actual, expected in zip(head(list(features.values())), theirs.rpn_head(maps), strict=True):
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e)
    anchors = ours.proposal_generator.anchor_generator(list(features.values()))
    for level, stride in enumerate(published.STRIDES):
        expected = published.make_anchors(maps[level].shape[2:], stride)
        assert_close(anchors[level].tensor, expected)

    rois = make_boxes(SIZE)
    heads = ours.roi_heads
    levels = [features[f] for f in heads.box_in_features]
    pooled = heads.box_pooler(levels, [Boxes(rois)])
    assert_close(pooled, published.pool(maps, rois, 7))
    their_heads = theirs.roi_head.bbox_head
    if not isinstance(their_heads, torch.nn.ModuleList):
        their_heads, box_heads, predictors = [their_heads], [heads.box_head], [heads.box_predictor]
    else:
        box_heads, predictors = heads.box_head, heads.box_predictor
    for theirs_k, head, predictor in zip(their_heads, box_heads, predictors, strict=True):
        logits, deltas = theirs_k(pooled)
        features_k = head(pooled)
        assert_close(predictor.cls_score(features_k), logits)
        predictions = predictor(features_k)
        assert_close(predictions[1], deltas)
        instances = [Instances((100, 100))]
        instances[0].proposal_boxes = Boxes(rois)
        (probabilities,) = predictor.predict_probs(predictions, instances)
        assert_close(probabilities[:, :-1], theirs_k.scores(logits))
    if heads.mask_on:
        pooled = heads.mask_pooler(levels, [Boxes(rois)])
        pairs = [(heads.mask_head, theirs.roi_head.mask_head)]
        if isinstance(heads.mask_head, torch.nn.ModuleList):
            pairs = zip(*pairs[0], strict=True)
        for ours_k, theirs_k in pairs:
            assert_close(ours_k.layers(pooled), theirs_k(pooled))


@torch.no_grad()
def test_detections(pair):
    theirs, ours = pair
    image = make_image((96, 130), seed=1)
    expected = theirs.detect(image, proposals=100, nms=0.3, limit=20)
    assert len(expected[0]) == 20
    (actual,) = ours.inference([{"image": image}], do_postprocess=False)
    torch.testing.assert_close(actual.pred_boxes.tensor, expected[0], rtol=0, atol=1e-3)  # pixels
    assert_close(actual.scores, expected[1])
    assert torch.equal(actual.pred_classes, expected[2])
    if actual.has("pred_masks"):
        heads = ours.roi_heads.mask_head
        head = heads[0] if isinstance(heads, torch.nn.ModuleList) else heads
        assert_close(actual.pred_masks[:, 0] * (head.mask_threshold / 0.5), expected[3])
