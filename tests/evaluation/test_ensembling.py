"""Combined results of hand-worked cases and of synthetic detectors."""

import json
from dataclasses import replace

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_det.errors import UserError
from apa_det.evaluation import Detections, GroundTruth, Masks, compare, evaluate, read_results
from apa_det.evaluation.ensembling import ENSEMBLE_METHODS, ensemble
from apa_det.utils.json_files import read_json, write_json
from apa_det_cli import ensemble as ensemble_command

pytest.importorskip("ensemble_boxes")
TRUTH = GroundTruth(
    {
        "images": [{"id": i, "height": 50, "width": 100} for i in (3, 7)],
        "categories": [{"id": i, "image_count": 1} for i in (1, 2)],
        "annotations": [],
    },
    everything_verified=True,
)


def detections(*rows, masks=None, image_id=3):
    """Build detections from rows of category, score and XYWH."""
    columns = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(
        np.full(len(columns), image_id),
        columns[:, 0].astype(np.int64),
        columns[:, 1],
        columns[:, 2:],
        None if masks is None else Masks.from_rles([encode(mask) for mask in masks]),
    )


def encode(columns):
    """Encode the mask of these image columns."""
    mask = np.zeros((50, 100), np.uint8)
    mask[:, columns] = 1
    return mask_util.encode(np.asfortranarray(mask))


def decoded(result):
    """Return the image columns of each mask."""
    return [np.flatnonzero(mask_util.decode(rle)[0]).tolist() for rle in result.masks.rles()]


def rows(result):
    return np.column_stack([result.category_ids, result.scores, result.boxes])


def test_weighted_boxes_fusion_by_hand():
    """(10, 10, 20, 20) at 0.6 and (12, 10, 20, 20) at 0.2: IoU 18/22, mean box at x 10.5, mean
    score 0.4. A box of one file only gets half its score."""
    first = detections((1, 0.6, 10, 10, 20, 20), (2, 0.5, 60, 10, 20, 20))
    second = detections((1, 0.2, 12, 10, 20, 20))
    result = ensemble(TRUTH, [first, second])
    expected = [[1, 0.4, 10.5, 10, 20, 20], [2, 0.25, 60, 10, 20, 20]]
    np.testing.assert_allclose(rows(result), expected, rtol=1e-6)


def test_weights():
    """With weights 3 and 1: x = (3·0.4·10 + 1·0.8·12) / 2, score = (3·0.4 + 0.8) / 4."""
    first, second = detections((1, 0.4, 10, 10, 20, 20)), detections((1, 0.8, 12, 10, 20, 20))
    result = ensemble(TRUTH, [first, second], weights=[3, 1])
    np.testing.assert_allclose(rows(result), [[1, 0.5, 10.8, 10, 20, 20]], rtol=1e-6)
    kept = ensemble(TRUTH, [first, second], weights=[4, 1], method="nms")
    np.testing.assert_allclose(rows(kept), [[1, 0.4, 10, 10, 20, 20]])


def test_suppression_by_hand():
    """IoU 18/22 = 9/11: NMS drops the lower box, soft-NMS multiplies its score by 2/11. Boxes of
    another class, or with a smaller IoU, stay."""
    first = detections((1, 0.9, 10, 10, 20, 20), (2, 0.3, 10, 10, 20, 20))
    second = detections((1, 0.55, 12, 10, 20, 20), (1, 0.7, 25, 10, 20, 20))
    result = ensemble(TRUTH, [first, second], method="nms", iou=0.5)
    kept = [[1, 0.9, 10, 10, 20, 20], [1, 0.7, 25, 10, 20, 20], [2, 0.3, 10, 10, 20, 20]]
    np.testing.assert_allclose(rows(result), kept)
    result = ensemble(TRUTH, [first, second], method="soft-nms", iou=0.5)
    np.testing.assert_allclose(rows(result), [*kept, [1, 0.1, 12, 10, 20, 20]])


@given(st.integers(1, 12), st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_soft_nms_equals_its_definition(n, seed):
    rng = np.random.default_rng(seed)
    boxes = np.column_stack([rng.uniform(0, 30, (n, 2)), rng.uniform(10, 20, (n, 2))])
    scores = rng.permutation(np.linspace(0.1, 0.9, n))
    result = ensemble(
        TRUTH,
        [detections(*np.column_stack([np.ones(n), scores, boxes]))],
        method="soft-nms",
        iou=0.3,
    )
    expected, left = [], scores.copy()
    for _ in range(n):
        best = int(left.argmax())
        expected.append(left[best])
        left[best] = -1
        for i in np.flatnonzero(left > -1):
            iou = mask_util.iou([boxes[i]], [boxes[best]], [0])[0, 0]
            left[i] *= 1 - iou if iou > 0.3 else 1
    np.testing.assert_allclose(result.scores, sorted(expected, reverse=True), rtol=1e-6)


def test_masks_are_averaged_by_score():
    """A pixel stays if the scores of its masks sum to half of 0.4 + 0.3 + 0.3."""
    box = (10, 10, 20, 20)
    parts = [
        detections((1, score, *box), masks=[columns])
        for score, columns in ((0.4, range(10, 20)), (0.3, range(15, 25)), (0.3, range(18, 30)))
    ]
    assert decoded(ensemble(TRUTH, parts)) == [list(range(15, 25))]
    # With weight 3 the first mask has 1.2 of 1.8: the others cannot change the result.
    assert decoded(ensemble(TRUTH, parts, weights=[3, 1, 1])) == [list(range(10, 20))]
    assert decoded(ensemble(TRUTH, parts, method="nms")) == [list(range(10, 20))]


def test_masks_of_different_objects_are_not_averaged():
    """Two objects of a class, and one of another class at the same position."""
    first = detections(
        (1, 0.9, 10, 10, 20, 20), (1, 0.8, 50, 10, 20, 20), masks=[range(10, 30), range(50, 70)]
    )
    second = detections((2, 0.7, 10, 10, 20, 20), masks=[range(12, 28)])
    result = ensemble(TRUTH, [first, second])
    assert result.category_ids.tolist() == [1, 1, 2]
    assert decoded(result) == [list(range(10, 30)), list(range(50, 70)), list(range(12, 28))]


def test_clipping_and_limits():
    """Boxes are clipped, boxes outside are dropped, and images are independent."""
    first = detections((1, 0.9, -5, 10, 20, 20), (1, 0.8, 120, 10, 5, 5), (1, 0.0, 40, 10, 5, 5))
    second = detections((1, 0.9, 0, 10, 15, 20), image_id=7)
    third = detections((1, 0.5, 30, 30, 5, 5), (2, 0.4, 60, 30, 5, 5), image_id=7)
    result = ensemble(TRUTH, [second, first, third], method="nms", max_dets=2)
    assert result.image_ids.tolist() == [3, 7, 7]
    np.testing.assert_allclose(result.boxes[0], [0, 10, 15, 20])
    assert result.scores.tolist() == [0.9, 0.9, 0.5]
    assert len(ensemble(TRUTH, [second, third], method="nms", min_score=0.4)) == 2
    assert len(ensemble(TRUTH, [detections(), detections()])) == 0


@pytest.mark.parametrize("method", ["wbf", "nms"])
def test_idempotence(detections_on_synthetic, method):
    """Without overlapping boxes and equal scores, a result combined with itself is unchanged."""
    truth = GroundTruth.from_file(detections_on_synthetic.gt)
    own = read_results(detections_on_synthetic.results[0], truth)
    own = replace(own, scores=np.linspace(1, 0.01, len(own)))
    once = ensemble(truth, [own], method="nms", iou=0.3)
    twice = ensemble(truth, [once, once], method=method)
    for iou_type in ("bbox", "segm"):
        metrics = [evaluate(truth, result, iou_type).metrics() for result in (once, twice)]
        assert metrics[0] == pytest.approx(metrics[1], nan_ok=True)


def test_invalid_input():
    boxes, high = detections((1, 0.5, 1, 1, 5, 5)), detections((1, 5.0, 1, 1, 5, 5))
    masked = detections((1, 0.5, 1, 1, 5, 5), masks=[range(1, 6)])
    with pytest.raises(
        UserError, match="in .0, 1. to be combined, but b.json has scores from 5 to 5"
    ):
        ensemble(TRUTH, [boxes, high], names=["a.json", "b.json"])
    with pytest.raises(UserError, match="b.json has masks, but a.json does not"):
        ensemble(TRUTH, [boxes, masked], names=["a.json", "b.json"])
    with pytest.raises(UserError, match=r"2 positive numbers, one per result; got \[1.0, 0.0\]"):
        ensemble(TRUTH, [boxes, boxes], weights=[1, 0])
    with pytest.raises(UserError, match="wbf, nms, soft-nms; got 'mean'"):
        ensemble(TRUTH, [boxes, boxes], method="mean")
    with pytest.raises(UserError, match=r"iou must be in \(0, 1\), got 1.5"):
        ensemble(TRUTH, [boxes, boxes], iou=1.5)


@pytest.mark.parametrize("method", ENSEMBLE_METHODS)
def test_tool(detections_on_synthetic, tool, tmp_path, capsys, method):
    paths = detections_on_synthetic.results
    output = tmp_path / "both.json"
    command = ["--output", output, "--gt", detections_on_synthetic.gt, "--results", *paths]
    assert tool("ensemble", *command, "--method", method, "--weights", "2,1") == 0
    assert f"Wrote {output}" in capsys.readouterr().out
    comparison = compare(detections_on_synthetic.gt, [*paths, output])
    assert comparison.iou_types == ("bbox", "segm")
    assert tool("ensemble", *command, "--method", method, "--boxes-only") == 0
    assert "segmentation" not in json.loads(output.read_text())[0]


def test_tool_reports_errors_in_one_line(detections_on_synthetic, tool, tmp_path, capsys):
    gt, (path, _) = detections_on_synthetic.gt, detections_on_synthetic.results
    output, broken = tmp_path / "out.json", tmp_path / "broken.json"
    broken.write_text(path.read_text()[:500])
    for arguments, message in (
        (["--results", path], "two or more"),
        (["--results", path, path], "--results needs --gt"),
        (["--gt", gt, "--results", path, broken], "broken.json is cut off"),
        (["--checkpoints", "a.pth", "b.pth"], "one --config-file, or one for each"),
        (["--results", "a", "b", "--weights", "1"], "has 1 weights for 2 results"),
        (["--results", "a", "b", "--output", "out.txt"], "must name a .json file, got out.txt"),
    ):
        assert tool("ensemble", "--output", output, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("image_id", [-1, 0, 10**15])
def test_image_that_is_not_in_the_ground_truth(image_id):
    """Ids outside those of the ground truth never count as the last or the first image."""
    truth = GroundTruth.from_dataset(
        {
            "images": [{"id": i, "height": 8, "width": 8} for i in (5, 7)],
            "categories": [{"id": 1, "name": "a", "frequency": "f", "image_count": 200}],
            "annotations": [],
        }
    )
    record = {"image_id": image_id, "category_id": 1, "bbox": [1, 1, 4, 4], "score": 0.5}
    detections = Detections.from_records([{**record, "image_id": 5}, record])
    with pytest.raises(UserError, match=rf"image_id must be .*ground truth, got {image_id}\b"):
        ensemble(truth, [detections, detections])


def test_results_of_a_test_set(detections_on_synthetic, tmp_path):
    """Without ground truth, masks are combined too, and written as LVIS's server takes them."""
    truth = read_json(detections_on_synthetic.gt)
    write_json({k: v for k, v in truth.items() if k != "annotations"}, tmp_path / "test.json")
    files = [str(path) for path in detections_on_synthetic.results]
    flags = ["--results", *files, "--output", str(tmp_path / "out.json"), "--gt"]
    ensemble_command.run(ensemble_command.parser().parse_args([*flags, f"{tmp_path}/test.json"]))
    combined = read_json(tmp_path / "out.json")
    assert set(combined[0]) == {"image_id", "category_id", "score", "segmentation"}
    ensemble_command.run(
        ensemble_command.parser().parse_args([*flags, str(detections_on_synthetic.gt)])
    )
    with_boxes = read_json(tmp_path / "out.json")
    assert [{k: v for k, v in r.items() if k != "bbox"} for r in with_boxes] == combined
