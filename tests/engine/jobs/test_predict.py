"""Predictions of checkpoints, written and ensembled."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from apa_det.engine import setup_job
from apa_det.engine.jobs import write_predictions
from apa_det.errors import UserError
from apa_det.evaluation import GroundTruth, read_results


@pytest.fixture
def checkpoint(arguments, tmp_path):
    path = tmp_path / "weights.pth"
    torch.manual_seed(0)
    state = build_model(setup_job(arguments()).config).state_dict()
    torch.save({"model": state, "__author__": "apa_det"}, path)
    return path


def test_ensemble_of_a_checkpoint_and_a_result_file(
    arguments, checkpoint, tiny_dataset, tmp_path, tool
):
    """The ensemble of a checkpoint with its own predictions has the same scores."""
    pytest.importorskip("ensemble_boxes")
    weights = ("MODEL.WEIGHTS", checkpoint)
    first = write_predictions(
        setup_job(arguments(*weights, eval_only=True)), str(tmp_path / "first")
    )
    output = tmp_path / "both.json"
    flags = ["--output", output, "--config-file", arguments().config_file, "--method", "nms"]
    flags += ["--iou", 0.5, "--results", first, "--checkpoints", checkpoint]
    assert tool("ensemble", *flags) == 0
    truth = GroundTruth.from_file(tiny_dataset / "val.json")
    alone, both = (read_results(path, truth) for path in (first, output))
    assert len(alone) == len(both) > 0 and both.masks is not None
    assert sorted(alone.scores.tolist()) == pytest.approx(sorted(both.scores.tolist()))


def test_augmented_predictions_are_written(arguments, checkpoint, tiny_dataset, tmp_path):
    augmentation = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 80))
    job = setup_job(arguments("MODEL.WEIGHTS", checkpoint, *augmentation, eval_only=True))
    found = read_results(
        write_predictions(job, str(tmp_path)), GroundTruth.from_file(tiny_dataset / "val.json")
    )
    assert len(found) > 0 and found.masks is not None


def test_predictions_without_long_tail_evaluation(arguments, checkpoint, tmp_path):
    job = setup_job(arguments("MODEL.WEIGHTS", checkpoint, eval_only=True))
    MetadataCatalog.get("a_voc_set").evaluator_type = "pascal_voc"
    with pytest.raises(UserError, match="long-tail evaluation, which a_voc_set does not have"):
        write_predictions(job.changed({"test_datasets": ("a_voc_set",)}), str(tmp_path))
    MetadataCatalog.remove("a_voc_set")
    with pytest.raises(UserError, match="DATASETS.TEST is empty"):
        write_predictions(job.changed({"test_datasets": ()}), str(tmp_path))
