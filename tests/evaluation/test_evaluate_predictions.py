"""The command-line interface of tools/evaluate_predictions.py."""

import json
from functools import partial

import pytest

from apa_det.evaluation import compare
from apa_det.utils.json_files import read_json, write_json


@pytest.fixture
def main(tool):
    return partial(tool, "evaluate_predictions")


def test_tables_and_json(main, detections_on_synthetic, tmp_path, capsys):
    paths = detections_on_synthetic
    out = tmp_path / "out.json"
    assert main("--gt", paths.gt, "--results", *paths.results, "--json", out) == 0
    comparison = compare(paths.gt, paths.results)
    printed = capsys.readouterr().out
    for iou_type in ("bbox", "segm"):
        assert f"\n{comparison.table(iou_type)}\n" in printed
    assert comparison.describe() in printed and "engine fast" in printed
    assert json.loads(out.read_text()) == comparison.summary()


def test_options(main, detections_on_synthetic, tmp_path, capsys):
    paths = detections_on_synthetic
    arguments = ["--gt", paths.gt, "--results", paths.results[0], "--iou-type", "bbox"]
    arguments += ["--engine", "lvis", "--max-dets", -1, "--groups", "few:8,many", "--ap-fixed"]
    (tmp_path / "ids.txt").write_text("1\n2\n3\n")
    arguments += ["--image-ids", tmp_path / "ids.txt"]
    assert main(*arguments) == 0
    out = capsys.readouterr().out
    assert "APfew" in out and "ARmany@all" in out and "APmany_fixed" in out and "segm" not in out
    assert "all detections per image" in out and "engine lvis" in out
    assert "AP_fixed: AP of the 10,000 best detections" in out and "AP_pool:" not in out
    assert f"3 images of {tmp_path / 'ids.txt'}" in out


def test_report(main, detections_on_synthetic, tmp_path, capsys):
    paths = detections_on_synthetic
    arguments = ["--gt", paths.gt, "--results", paths.results[0], "--iou-type", "bbox"]
    assert main(*arguments, "--report", tmp_path / "r", "--image-root", paths.image_root) == 0
    assert f"Report: {tmp_path / 'r/report.html'}" in capsys.readouterr().out
    assert (tmp_path / "r/misses_1.jpg").exists()
    assert main(*arguments, "--image-root", paths.image_root) == 2
    assert "--image-root is for the report" in capsys.readouterr().err


def test_one_line_errors(main, detections_on_synthetic, tmp_path, capsys):
    paths = detections_on_synthetic
    records = read_json(paths.results[0])
    records[7]["image_id"] = 10**6
    write_json(records, tmp_path / "bad.json")
    bad = tmp_path / "bad.json"
    for arguments, message in (
        ((paths.gt, bad), "bad.json: record 7 (from 0): image_id must be an image id of the"),
        ((paths.gt, tmp_path / "none.json"), "none.json does not exist"),
        ((tmp_path / "none.json", bad), "none.json does not exist"),
        ((bad, bad), "bad.json: the file must be an object"),
        ((paths.gt, paths.results[0], "--groups", "r:x"), "Invalid frequency groups 'r:x'"),
    ):
        gt, *rest = arguments
        assert main("--gt", gt, "--results", *rest) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error
