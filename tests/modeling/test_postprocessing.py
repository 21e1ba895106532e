"""Thresholds by class, class-agnostic NMS and mask scores, against detectron2's own selection."""

import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances
from torchvision.ops import nms

from apa_det import add_apa_config
from apa_det.data import register_lvis_format
from apa_det.data.frequency import FrequencyGroups
from apa_det.errors import UserError
from apa_det.modeling import APAFastRCNNOutputLayers, PostProcessing, soft_nms
from apa_det.modeling.mask_score import maskness
from apa_det.modeling.postprocessing import postprocessing_arguments

NAMES, COUNTS = ["owl", "cat", "man", "bus"], [3, 8, 60, 900]
K = len(NAMES)


@pytest.fixture
def dataset(tmp_path):
    """A registered dataset of these classes, in the groups r, r, c and f."""
    name, path = "postprocessing_train", tmp_path / "train.json"
    categories = [
        {"id": i, "name": n, "image_count": c, "instance_count": c}
        for i, (n, c) in enumerate(zip(NAMES, COUNTS, strict=True), 1)
    ]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    register_lvis_format(name, path, tmp_path)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def make(agnostic_boxes=False, **kwargs):
    torch.manual_seed(0)
    predictor = APAFastRCNNOutputLayers(
        ShapeSpec(channels=8),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
        num_classes=K,
        class_score="gumbel",
        cls_agnostic_bbox_reg=agnostic_boxes,
        test_score_thresh=0.05,
        test_nms_thresh=0.4,
        test_topk_per_image=30,
        **kwargs,
    ).eval()
    torch.nn.init.normal_(predictor.cls_score.weight, std=0.5)
    torch.nn.init.constant_(predictor.cls_score.bias, 0.0)
    torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.1)
    proposals = []
    for n in (40, 25):
        corners = torch.rand(n, 2) * 60
        boxes = torch.cat([corners, corners + 10 + torch.rand(n, 2) * 50], dim=1)
        proposals.append(Instances((80, 90), proposal_boxes=Boxes(boxes)))
    return predictor, predictor(torch.randn(65, 8)), proposals


def rows(instances):
    boxes, classes = instances.pred_boxes.tensor.tolist(), instances.pred_classes.tolist()
    return list(zip(instances.scores.tolist(), classes, map(tuple, boxes), strict=True))


def scored(predictor, predictions, proposals):
    boxes = predictor.predict_boxes(predictions, proposals)
    return boxes, predictor.predict_probs(predictions, proposals), [(80, 90)] * 2


@pytest.mark.parametrize("agnostic_boxes", [False, True])
def test_thresholds_by_group(dataset, agnostic_boxes):
    """The same as detectron2's selection among scores that are 0 below their thresholds."""
    predictor, predictions, proposals = make(
        agnostic_boxes,
        score_thresh_per_group="r:0.3,c:0.02,0.5",
        score_thresh_datasets=dataset,
    )
    found, indices = predictor.inference(predictions, proposals)
    boxes, scores, sizes = scored(predictor, predictions, proposals)
    limits = torch.tensor([0.3, 0.3, 0.02, 0.5, 2.0])
    scores = [torch.where(s > limits, s, 0.0) for s in scores]
    expected, expected_indices = fast_rcnn_inference(boxes, scores, sizes, 0.0, 0.4, 30)
    assert [rows(f) for f in found] == [rows(e) for e in expected]
    assert all(map(torch.equal, indices, expected_indices))
    classes = torch.cat([f.pred_classes for f in found])
    assert set(classes.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("agnostic_boxes", [False, True])
@pytest.mark.parametrize(
    "method, agnostic", [("", True), ("linear", False), ("gaussian", False), ("gaussian", True)]
)
def test_suppression(agnostic_boxes, method, agnostic):
    predictor, predictions, proposals = make(
        agnostic_boxes, soft_nms=method, soft_nms_sigma=0.3, class_agnostic_nms=agnostic
    )
    found, indices = predictor.inference(predictions, proposals)
    boxes, scores, sizes = scored(predictor, predictions, proposals)
    # All boxes above the threshold, clipped, from detectron2's function without suppression
    everything, sources = fast_rcnn_inference(boxes, scores, sizes, 0.05, 1.0, -1)
    for mine, index, image, source in zip(found, indices, everything, sources, strict=True):
        groups = image.pred_classes * (not agnostic)
        inputs = image.pred_boxes.tensor, image.scores, groups
        if method:
            kept, new = soft_nms(*inputs, method, 0.4, 0.3, 30)
            kept, new = kept[new > 0.05], new[new > 0.05]
        else:
            kept = nms(*inputs[:2], 0.4)[:30]
            new = image.scores[kept]
        assert torch.equal(mine.scores, new)
        assert torch.equal(mine.pred_classes, image.pred_classes[kept])
        assert torch.equal(mine.pred_boxes.tensor, image.pred_boxes.tensor[kept])
        assert torch.equal(index, source[kept])


def test_soft_nms_drops_what_falls_to_the_threshold_of_its_class(dataset):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]] * 2)
    scores, classes = torch.tensor([0.9, 0.8, 0.9, 0.8]), torch.tensor([0, 0, 3, 3])
    processing = PostProcessing(
        K,
        soft_nms="linear",
        score_thresh_per_group="r:0.1,0.2",
        score_thresh_datasets=[dataset],
    )
    kept, new = processing.suppress(boxes, scores, classes, 0.5, 0.0, 10)
    assert kept.tolist() == [0, 2, 1]  # 0.8 · (1 − 0.8) = 0.16
    torch.testing.assert_close(new, torch.tensor([0.9, 0.9, 0.16]))


def test_thresholds_by_class_and_name(dataset, tmp_path):
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps({"man": 0.7, "Owl": 0.1}))
    keys = dict(score_thresh_per_group=str(path), score_thresh_datasets=[dataset])
    processing = PostProcessing(K, **keys)
    expected = torch.tensor([0.1, 0.25, 0.7, 0.25])
    assert torch.equal(processing.thresholds(0.25), expected)
    processing.set_class_names(NAMES[::-1])
    assert torch.equal(processing.thresholds(0.25), expected.flip(0))
    groups = FrequencyGroups.parse("few:5,many")
    few = dict(score_thresh_per_group="few:0.1,many:0.9", score_thresh_datasets=dataset)
    for value in ("few:5,many", groups):
        processing = PostProcessing(K, **few, score_thresh_groups=value)
        assert torch.equal(processing.thresholds(0.0), torch.tensor([0.1, 0.9, 0.9, 0.9]))


def test_keys():
    cfg = get_cfg()
    add_apa_config(cfg)
    assert not PostProcessing(K, **postprocessing_arguments(cfg)).is_active
    cfg.TEST.SOFT_NMS.METHOD, cfg.TEST.SOFT_NMS.SIGMA = "gaussian", 0.2
    cfg.TEST.CLASS_AGNOSTIC_NMS, cfg.TEST.SCORE_THRESH_PER_GROUP = True, "0.3"
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("a",), ("b",)
    cfg.TEST.FREQUENCY_GROUPS, cfg.TEST.COUNT_FROM = "r:10,f", "c"
    processing = PostProcessing(K, **postprocessing_arguments(cfg))
    assert (processing.soft_nms, processing.sigma) == ("gaussian", 0.2)
    assert processing.class_agnostic_nms and processing.datasets == ["a", "b"]
    assert (processing.groups, processing.count_from) == ("r:10,f", "c")


def test_maskness():
    p = torch.tensor([[[0.9, 0.5], [0.7, 0.1]], [[0.1, 0.2], [0.3, 0.49]]])[:, None]
    torch.testing.assert_close(maskness(p), torch.tensor([0.7, 0.0]))
    torch.testing.assert_close(maskness(p, 0.3), torch.tensor([0.7, 0.395]))


def test_errors(dataset, tmp_path):
    with pytest.raises(UserError, match="TEST.SOFT_NMS.METHOD must be linear, gaussian or empty"):
        PostProcessing(K, soft_nms="hard")
    with pytest.raises(UserError, match="TEST.SOFT_NMS.SIGMA must be > 0, got 0"):
        PostProcessing(K, soft_nms_sigma=0)
    path = tmp_path / "t.json"
    for text, content, message in (
        ("r:0.1,c:0.2", None, "omits the group f"),
        ("x:0.1,0.2", None, "Unknown frequency group 'x'"),
        ("r:1.5", None, "Invalid confidence threshold"),
        (str(path), {"dog": 0.1}, "thresholds of unknown classes: 'dog'"),
        (str(path), {"owl": 2}, "'owl' must be a threshold from 0 to 1, got 2"),
        (str(path), [], "must be a JSON object"),
    ):
        path.write_text(json.dumps(content))
        keys = dict(score_thresh_per_group=text, score_thresh_datasets=dataset)
        with pytest.raises(UserError, match=message):
            PostProcessing(K, **keys).thresholds(0.0)
