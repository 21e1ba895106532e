"""Keys of class scores and post-processing: where they act, and what is refused."""

import json

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import MetadataCatalog

from apa_det.engine import setup_job
from apa_det.engine.jobs.calibrate import score_strengths
from apa_det.engine.setup.lazy import LazyJob
from apa_det.engine.setup.lazy_scores import score_nodes
from apa_det.engine.testing import build_subset_loader, load_model
from apa_det.errors import UserError
from apa_det.evaluation import LongTailEvaluator
from apa_det.modeling import APAFCOS, APARetinaNet
from apa_det.modeling.mask_score import maskness
from apa_det.modeling.postprocessing import postprocessings

RETINANET = (
    *("MODEL.META_ARCHITECTURE", "APARetinaNet", "MODEL.MASK_ON", False),
    *("MODEL.BACKBONE.NAME", "build_apa_retinanet_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3','res4','res5']"),
    *("MODEL.FPN.IN_FEATURES", "['res3','res4','res5']", "MODEL.RETINANET.NUM_CONVS", 1),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.CLASS_SCORE", "apa"),
)
APA_HEADS = ("MODEL.ROI_HEADS.NAME", "APAROIHeads")
CASCADE = (
    *("MODEL.ROI_HEADS.NAME", "APACascadeROIHeads"),
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["MODEL.RETINANET.CLASS_SCORE", "apa"],
            "RETINANET.CLASS_SCORE apa acts in MODEL.META_ARCHITECTURE APARetinaNet only, got Gen",
        ),
        (
            [*RETINANET, "MODEL.ROI_BOX_HEAD.CLASS_LOSS", "DropLoss"],
            "CLASS_LOSS DropLoss has no effect in APARetinaNet: set MODEL.RETINANET.CLASS_LOSS",
        ),
        (
            [*RETINANET, "MODEL.ROI_BOX_HEAD.USE_DROP_LOSS", True],
            "USE_DROP_LOSS True has no effect in APARetinaNet: set MODEL.RETINANET.CLASS_LOSS ins",
        ),
        (
            [*RETINANET, "MODEL.RETINANET.CALIBRATION", "NorCal"],
            "NorCal has no effect with MODEL.RETINANET.CALIBRATION_STRENGTH 0",
        ),
        (
            [*APA_HEADS, "TEST.SOFT_NMS.METHOD", "linear", "TEST.AUG.ENABLED", True],
            "TEST.SOFT_NMS.METHOD does not work with TEST.AUG.ENABLED",
        ),
        (
            [*APA_HEADS, "TEST.SCORE_THRESH_PER_GROUP", "c:0.1,f:0.2"],
            "The confidence threshold 'c:0.1,f:0.2' omits the group r",
        ),
        (["TEST.SOFT_NMS.METHOD", "hard"], "TEST.SOFT_NMS.METHOD must be one of"),
        (["TEST.SOFT_NMS.SIGMA", 0.0], "TEST.SOFT_NMS.SIGMA must be a number > 0; got 0.0"),
    ],
)
def test_refused_before_the_model(arguments, options, message):
    with pytest.raises(UserError, match=message.replace("; got", ".? got")):
        setup_job(arguments(*options))


@pytest.mark.parametrize(
    "options, message",
    [
        (["TEST.SOFT_NMS.METHOD", "linear"], "TEST.SOFT_NMS.METHOD has no effect in Generalized"),
        (
            ["TEST.SCORE_THRESH_PER_GROUP", "r:0.1,0.2"],
            "SCORE_THRESH_PER_GROUP has no effect in Gener",
        ),
        (["TEST.CLASS_AGNOSTIC_NMS", True], "CLASS_AGNOSTIC_NMS has no effect .*APARetinaNet"),
        (["TEST.MASK_SCORE", True], "TEST.MASK_SCORE has no effect .* to APAROIHeads or"),
        ([*RETINANET, "TEST.MASK_SCORE", True], "TEST.MASK_SCORE has no effect in APARetinaNet"),
        (
            [*APA_HEADS, "TEST.MASK_SCORE", True, "MODEL.MASK_ON", False],
            "TEST.MASK_SCORE needs a mask head",
        ),
    ],
)
def test_refused_by_the_model(arguments, options, message):
    job = setup_job(arguments(*options))
    with pytest.raises(UserError, match=message):
        job.check_inference(job.build_model())


@pytest.mark.parametrize("heads", [APA_HEADS, CASCADE])
def test_mask_score(arguments, heads, tiny_dataset):
    """The scores are those without the key times the mean probability in the mask."""
    job = setup_job(arguments(*heads, "MODEL.ROI_MASK_HEAD.NAME", "APAMaskRCNNConvUpsampleHead"))
    torch.manual_seed(0)
    model = job.build_model().eval()
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=0.02)
    image = [{"image": torch.rand(3, 64, 64) * 255}]
    head = model.roi_heads.mask_head
    for threshold in (0.5, 0.4):
        head.mask_threshold = threshold
        model.roi_heads.mask_score = False
        (plain,) = model.inference(image, do_postprocess=False)
        masks = plain.pred_masks * (threshold / 0.5)
        expected = plain.scores * maskness(masks, threshold)
        order = expected.sort(descending=True)[1]
        order = order[expected[order] > 0]
        model.roi_heads.mask_score = True
        (found,) = model.inference(image, do_postprocess=False)
        assert len(found) > 3 and not torch.equal(order, torch.arange(len(plain)))
        torch.testing.assert_close(found.scores, expected[order])
        assert torch.equal(found.pred_classes, plain.pred_classes[order])
        assert torch.equal(found.pred_masks, plain.pred_masks[order])


def test_retinanet_trains_evaluates_and_calibrates(arguments, train_net, output):
    """A training with a long-tailed loss, and calibration rows that equal evaluations."""
    options = (*RETINANET, "MODEL.RETINANET.CLASS_LOSS", "EqualizationLossV2")
    train_net(arguments(*options))
    state = torch.load(output / "model_final.pth", weights_only=False)["model"]
    assert state["head.class_loss.negative_gradients"].sum() > 0
    assert "head.score.lambda_param" in state
    options = (*options, "MODEL.WEIGHTS", output / "model_final.pth")
    job = setup_job(arguments(*options, eval_only=True))
    overrides = "MODEL.RETINANET.CALIBRATION NorCal MODEL.RETINANET.CALIBRATION_STRENGTH 0.8"
    assert job.calibration_overrides("NorCal", 0.8) == [overrides]
    evaluator = LongTailEvaluator("tiny_train", subset=6, subset_only=True)
    loader = build_subset_loader(job, "tiny_train", evaluator.subset.image_ids)
    truth, ids = evaluator.subset, evaluator.category_ids
    calibrated = job.with_calibration("NorCal", 0.8)
    assert list(calibrated.counted_datasets()) == ["tiny_train"]
    model = load_model(calibrated)
    fit = score_strengths(model, loader, truth, ids, "NorCal", (0.0, 0.8))
    for strength, detections in zip((0.0, 0.8), fit.detections, strict=True):
        other = load_model(job.with_calibration("NorCal", strength) if strength else job).eval()
        with torch.no_grad():
            counts = [len(other(batch)[0]["instances"]) for batch in loader]
        assert sum(counts) / len(counts) == detections


def test_thresholds_reach_a_checkpoint_by_name(arguments, tmp_path):
    """The classes of the checkpoint are in another order than those of the datasets."""
    job = setup_job(arguments(*APA_HEADS))
    names = MetadataCatalog.get("tiny_train").thing_classes
    checkpoint = {"model": job.build_model().state_dict(), "class_names": names[::-1]}
    torch.save(checkpoint, tmp_path / "w.pth")
    path = tmp_path / "t.json"
    path.write_text(json.dumps({name: i / 8 for i, name in enumerate(names)}))
    options = (*APA_HEADS, "TEST.SCORE_THRESH_PER_GROUP", path)
    options = (*options, "MODEL.WEIGHTS", tmp_path / "w.pth", "DATASETS.TRAIN", "()")
    job = setup_job(arguments(*options, eval_only=True))
    (processing,) = postprocessings(load_model(job))
    assert processing.thresholds(0.0).tolist() == [0.375, 0.25, 0.125, 0.0]


def test_lazy_nodes(lazy_arguments):
    """The same settings in a LazyConfig, for box predictors and for dense detectors."""
    heads = "model.roi_heads.box_predictor"
    datasets = (f"{heads}.score_thresh_datasets=[tiny_train]",)
    options = (f"{heads}.soft_nms=gaussian", f"{heads}.score_thresh_per_group='r:0.3,0.1'")
    job = setup_job(lazy_arguments(*options, *datasets))
    (processing,) = postprocessings(job.build_model())
    assert processing.soft_nms == "gaussian"
    assert processing.thresholds(0.0).tolist() == pytest.approx([0.3] * 4)
    changed = job.with_score_thresholds("r:0.4,0.2")
    (line,) = job.score_threshold_overrides("r:0.4,0.2")
    assert f"{heads}.score_thresh_datasets=[tiny_train,tiny_val]" in line
    (processing,) = changed.postprocessings()
    assert processing.thresholds(0.0).tolist() == pytest.approx([0.4] * 4)
    with pytest.raises(UserError, match="omits the group r"):
        setup_job(lazy_arguments(f"{heads}.score_thresh_per_group='c:0.3,f:0.1'", *datasets))
    cfg = job.config.copy()
    for kind in (APARetinaNet, APAFCOS):
        cfg.model = L(kind)(num_classes=4)
        assert score_nodes(cfg) == ["model"]
        assert LazyJob(cfg).with_calibration("NorCal", 0.5).counted_datasets() == ["tiny_train"]


def test_lazy_augmentation(lazy_arguments):
    augmentation = ("train.test_augmentation.enabled=True",)
    for key in ("box_predictor.class_agnostic_nms", "mask_score"):
        with pytest.raises(UserError, match=f"{key} does not work with train.test_augmentation"):
            setup_job(lazy_arguments(*augmentation, f"model.roi_heads.{key}=True"))


def test_json_is_read(arguments, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"unknown": 0.1}))
    with pytest.raises(UserError, match="unknown classes: 'unknown'"):
        setup_job(arguments(*APA_HEADS, "TEST.SCORE_THRESH_PER_GROUP", path))
