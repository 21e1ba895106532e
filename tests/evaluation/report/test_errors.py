"""Errors in the report: page, files and figures."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from apa_det.data.class_thresholds import parse_thresholds
from apa_det.evaluation import FrequencyGroups, compare, write_report
from apa_det.evaluation.report.crop_figures import _window, draw_false_positives
from apa_det.evaluation.report.error_charts import worst_confusions


@pytest.fixture(scope="module")
def report(detections_on_synthetic, tmp_path_factory):
    """The comparison of one file, with 12 categories in two groups, and its report's folder."""
    paths = detections_on_synthetic
    groups = FrequencyGroups.parse("few:5,many")
    comparison = compare(
        paths.gt, paths.results[:1], groups=groups, details=True, image_root=paths.image_root
    )
    folder = tmp_path_factory.mktemp("errors")
    write_report(comparison, folder)
    return comparison, folder


def test_table_and_flag(report):
    comparison, folder = report
    page = (folder / "report.html").read_text(encoding="utf-8")
    for iou_type, kind in (("bbox", "class"), ("segm", "other")):
        types = comparison.files[0].analyses()[iou_type].types
        cells = [
            f"<td>{100 * types.dap(group)[kind]:.1f} ({types.count(group)[kind]:,})</td>"
            for group in (None, "few", "many")
        ]
        assert f"<td>{kind}</td>{''.join(cells)}" in page
    flags = re.findall(r"<code>--confidence-threshold (\S+)</code>", page)
    assert len(flags) == 2 and all(set(parse_thresholds(f)) == {"few", "many"} for f in flags)
    assert page.count("<script>") == 1  # it makes all tables sortable


def test_summary_and_tables(report):
    comparison, folder = report
    summary = json.loads((folder / "summary.json").read_text())["files"][0]["errors"]
    analysis = comparison.files[0].analyses()["bbox"]
    assert set(summary) == {"bbox", "segm"}
    for group, name in ((None, "all"), ("few", "few")):
        for kind, value in analysis.types.dap(group).items():
            assert summary["bbox"]["error_types"][name][kind]["dAP50"] == pytest.approx(100 * value)
    assert summary["bbox"]["confidence_threshold"] == analysis.curves.thresholds.text()
    assert len(summary["bbox"]["false_positives"]) == len(analysis.false_positives) > 4

    with open(folder / "confusions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = comparison.ground_truth.category_names
    assert [(r["category"], r["taken_for"], int(r["taken"])) for r in rows] == [
        (names[c.category], names[c.taken_for], c.count) for c in analysis.confusions
    ]
    with open(folder / "score_curves.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["iou_type"] == "bbox"]
    curve = analysis.curves.groups["many"]
    recalls = [float(row["recall"]) for row in rows if row["group"] == "many"]
    assert recalls == pytest.approx(100 * curve.recall, abs=1e-5)


def test_rare_categories_come_first(report):
    comparison, _ = report
    truth, file = comparison.ground_truth, comparison.files[0]
    worst = worst_confusions(truth, file)
    groups = truth.category_groups
    assert 0 < len(worst) <= 20
    assert all(groups[c.category] < groups[c.taken_for] for c in worst)
    counts = [c.count for c in worst]
    assert counts == sorted(counts, reverse=True)  # one group is rarer than the other


def test_unreadable_images_are_left_out(report, detections_on_synthetic, tmp_path, caplog):
    comparison, _ = report
    found = comparison.files[0].analyses()["bbox"].false_positives
    first = found[0].record["file_name"]
    (tmp_path / first).parent.mkdir()
    shutil.copy(detections_on_synthetic.image_root / first, tmp_path / first)
    there = compare(
        detections_on_synthetic.gt,
        detections_on_synthetic.results[:1],
        ["bbox"],
        groups=comparison.ground_truth.groups,
        details=True,
        image_root=detections_on_synthetic.image_root,
    )
    there.image_root = tmp_path
    figure = draw_false_positives(there, there.files[0])
    drawn = sum(f.record["file_name"] == first for f in found)
    assert sum(bool(axis.images) for axis in figure.axes) == drawn
    assert caplog.text.count("is missing from the report") == len(found) - drawn
    (tmp_path / first).unlink()
    assert draw_false_positives(there, there.files[0]) is None


def test_windows_are_in_the_image():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(20, 300, 2).tolist()
        boxes = rng.uniform(-30, 300, (2, 4))
        left, top, right, bottom = _window(boxes, height, width)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_boxes_only_without_details(detections_on_synthetic):
    comparison = compare(detections_on_synthetic.gt, detections_on_synthetic.results[:1], ["bbox"])
    assert comparison.files[0].analyses() == {}
    assert "errors" not in comparison.summary()["files"][0]
