import base64
import csv
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from apa_det.errors import UserError
from apa_det.evaluation import FrequencyGroups, compare, write_report
from apa_det.evaluation.report.miss_figures import draw_misses
from apa_det.text import format_number
from apa_det.utils.json_files import read_json, write_json

TYPES = ("Masks", "Boxes")
COLUMNS = ("AP", "AR", "AP", "AR", "change")
IMAGES = (".png", ".jpg")
FIGURES = (
    "ap_by_image_count",
    "best_and_worst",
    "error_types",
    "precision_recall",
    "reliability",
    "score_curves",
)


@pytest.fixture(scope="module")
def report(detections_on_synthetic, tmp_path_factory):
    """The comparison of two files, and the folder of its report."""
    paths = detections_on_synthetic
    comparison = compare(
        paths.gt, paths.results, details=True, image_root=paths.image_root, num_images=2
    )
    folder = tmp_path_factory.mktemp("report") / "new"
    assert write_report(comparison, folder) == folder / "report.html"
    return comparison, folder


class Page(HTMLParser):
    """The tags of a page, its text, and the rows of its tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.rows, self.open = [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data


def page_of(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_files(report):
    _, folder = report
    wanted = {f"{t}_{name}.png" for t in ("bbox", "segm") for name in (*FIGURES, "differences")}
    wanted |= {"misses_1.jpg", "misses_2.jpg", "report.html", "per_category.csv", "summary.json"}
    wanted |= {"confusions.csv", "score_curves.csv"}
    crops = {f"{name}_{i}.jpg" for name in ("confused", "false_positives") for i in (1, 2)}
    wanted |= crops | {"confusions_1.png", "confusions_2.png"}
    assert {path.name for path in folder.iterdir()} == wanted
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 600 and image.height > 200
    with Image.open(folder / "misses_1.jpg") as image:
        assert image.format == "JPEG" and image.width > 600 and image.height > 200


def test_page_is_self_contained(report):
    _, folder = report
    text = (folder / "report.html").read_text(encoding="utf-8")
    without_data = re.sub(r'src="data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+"', "", text)
    assert "http" not in without_data and "//" not in without_data
    page = page_of(folder)
    assert not page.open
    names = {tag for tag, _ in page.tags}
    assert not names & {"link", "iframe", "object", "a"}
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{}]
    assert not any(key.startswith("on") or key == "href" for _, a in page.tags for key in a)
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    images = {base64.b64decode(source.split(",")[1]) for source in sources}
    assert images == {path.read_bytes() for path in folder.iterdir() if path.suffix in IMAGES}


def test_page_shows_the_metrics(report):
    comparison, folder = report
    page = page_of(folder)
    assert page.text.split()[:3] == ["first", "and", "second"]  # the title
    heads = next(row for row in page.rows if row[0] == "Masks")
    rows = page.rows[page.rows.index(heads) + 1 :][:2]
    for row, file in zip(rows, comparison.files, strict=True):
        assert row[0] == file.name
        for name, text in zip(heads[1:], row[1:], strict=True):
            assert text == format_number(file.by_iou_type["segm"].metrics[name])
    assert "–" in rows[0]  # no object is large
    assert "24 images" in page.text and "nan" not in page.text


def test_per_category(report):
    comparison, folder = report
    with open(folder / "per_category.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    categories = comparison.files[0].by_iou_type["bbox"].categories
    assert [int(row["id"]) for row in rows] == [category["id"] for category in categories]
    for row, category in zip(rows, categories, strict=True):
        assert row["category"] == category["name"] and row["group"] == category["group"]
        assert int(row["image_count"]) == category["image_count"]
        assert int(row["instances"]) == category["annotations"]
    for result in comparison.files:
        for iou_type, of_type in result.by_iou_type.items():
            for metric in ("AP", "AP50", "AR"):
                values = [row[f"{iou_type}/{metric} {result.name}"] for row in rows]
                expected = [category[metric] for category in of_type.categories]
                assert [float(v) if v else -1 for v in values] == [
                    -1 if math.isnan(v) else v for v in expected
                ]
            aps = [float(v) for row in rows if (v := row[f"{iou_type}/AP {result.name}"])]
            assert sum(aps) / len(aps) == pytest.approx(of_type.metrics["AP"])


def test_category_table(report):
    """All categories with their values; those with few images first, without ground truth last."""
    comparison, folder = report
    rows = page_of(folder).rows
    start = next(i for i, row in enumerate(rows) if row[:2] == ["category", "group"])
    table = rows[start + 1 :]
    assert rows[start] == ["category", "group", "images", "instances", *COLUMNS, *COLUMNS]
    assert rows[start - 1] == ["", *(f"{t}: {f}" for t in TYPES for f in ("first", "second"))]
    results = [f.by_iou_type[t].categories for t in ("segm", "bbox") for f in comparison.files]
    assert len(table) == len(results[0])
    by_name = {row[0]: row for row in table}
    for category, *others in zip(*results, strict=True):
        row = by_name[category["name"]]
        assert row[2:4] == [str(category["image_count"]), str(category["annotations"])]
        values = [format_number(c[key]) for c in (category, *others) for key in ("AP", "AR")]
        assert [*row[4:8], *row[9:13]] == values
        change = others[0]["AP"] - category["AP"]
        assert row[8] == ("–" if math.isnan(change) else f"{change:+.1f}".replace("-", "−"))
    keys = [(row[4] == "–", int(row[2])) for row in table]
    assert keys == sorted(keys)


def test_page_shows_differences_and_class_agnostic_recall(report):
    comparison, folder = report
    page = page_of(folder)
    rows = {row[0]: row[1:] for row in page.rows if row and row[0].startswith("Masks: ")}
    [(_, differences)] = comparison.differences("segm")
    recalls = comparison.files[0].by_iou_type["segm"].agnostic_recall
    assert rows["Masks: first"] == [format_number(value) for value in recalls.values()]
    at = next(i for i, row in enumerate(page.rows) if row == ["", *differences])
    shown = page.rows[at + 1][1:]
    for difference, text in zip(differences.values(), shown, strict=True):
        if math.isnan(difference.difference):
            assert text == "–"
            continue
        assert text == f"{difference.difference:+.1f}".replace("-", "−")
        interval = f"{text}[{difference.low:+.1f}, {difference.high:+.1f}]".replace("-", "−")
        assert interval in page.text


def test_folder_that_is_a_file(report, tmp_path):
    (tmp_path / "report").write_text("")
    with pytest.raises(UserError, match="Cannot write .*report: File exists"):
        write_report(report[0], tmp_path / "report")


def test_summary(report):
    comparison, folder = report
    assert json.loads((folder / "summary.json").read_text()) == comparison.summary()


def test_worst_misses_come_first(report):
    comparison, _ = report
    for results in zip(*(file.worst_images for file in comparison.files), strict=True):
        assert len({result.record["id"] for result in results}) == 1
        assert len(results[0].annotations) == len(results[1].annotations)
    missed = [int((~result.matched).sum()) for result in comparison.files[0].worst_images]
    assert missed == sorted(missed, reverse=True) and missed[-1] > 0
    for result in comparison.files[0].worst_images:
        detections = result.detections
        assert (detections.image_ids == result.record["id"]).all()
        assert (detections.scores[:-1] >= detections.scores[1:]).all()


def test_one_file_without_images(detections_on_synthetic, tmp_path):
    paths = detections_on_synthetic
    comparison = compare(paths.gt, paths.results[:1], ["bbox"], details=True)
    write_report(comparison, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "confusions_1.png",
        *(f"bbox_{name}.png" for name in FIGURES),
    }
    assert "Images with the most missed objects" not in page_of(tmp_path).text
    with open(tmp_path / "per_category.csv", newline="") as file:
        assert next(csv.reader(file))[5:] == ["bbox/AP", "bbox/AP50", "bbox/AR"]


def test_unreadable_images_are_skipped(detections_on_synthetic, tmp_path, caplog):
    paths = detections_on_synthetic
    first = read_json(paths.gt)["images"][0]["file_name"]
    (tmp_path / first).parent.mkdir()
    shutil.copy(paths.image_root / first, tmp_path / first)
    comparison = compare(paths.gt, paths.results, ["bbox"], details=True, image_root=tmp_path)
    drawn = [caption for caption, _ in draw_misses(comparison)]
    chosen = [result.record["file_name"] for result in comparison.files[0].worst_images]
    assert len(drawn) == chosen.count(first)
    assert caplog.text.count("is missing from the report") == len(chosen) - len(drawn)


def test_names_with_html_and_matplotlib_markup(detections_on_synthetic, tmp_path):
    paths = detections_on_synthetic
    dataset = read_json(paths.gt)
    for category in dataset["categories"]:
        category["name"] = f"<b>&$x_{{{category['name']}$"
    write_json(dataset, tmp_path / "a<i>&.json")
    shutil.copy(paths.results[0], tmp_path / "_r$^<i>$.json")
    groups = FrequencyGroups.from_mapping({dataset["categories"][0]["id"]: "_<$^g$"})
    comparison = compare(
        tmp_path / "a<i>&.json",
        [tmp_path / "_r$^<i>$.json", paths.results[1]],
        ["bbox"],
        groups=groups,
        details=True,
        image_root=paths.image_root,
        num_images=1,
    )
    write_report(comparison, tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert "Detection on a<i>&.json" in page.text and "_r$^<i>$" in page.text
    assert "i" not in {tag for tag, _ in page.tags}


@pytest.mark.parametrize("scores", ["none", "above 1"])
def test_no_detections_or_invalid_scores(detections_on_synthetic, tmp_path, scores):
    records = read_json(detections_on_synthetic.results[0]) if scores == "above 1" else []
    write_json([{**r, "score": 10 * r["score"] - 3} for r in records], tmp_path / "x.json")
    comparison = compare(
        detections_on_synthetic.gt,
        [tmp_path / "x.json"],
        details=True,
        image_root=detections_on_synthetic.image_root,
        num_images=1,
    )
    write_report(comparison, tmp_path / "out")
    assert not (tmp_path / "out/bbox_reliability.png").exists()
    assert (tmp_path / "out/bbox_precision_recall.png").exists()


def test_single_category_with_one_object(tmp_path):
    image = {"id": 1, "file_name": "a.png", "height": 50, "width": 50}
    box = {"image_id": 1, "category_id": 3, "bbox": [5, 5, 20, 20]}
    dataset = {
        "images": [{**image, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "annotations": [{**box, "id": 1, "area": 400}],
        "categories": [{"id": 3, "name": "thing"}],
    }
    write_json(dataset, tmp_path / "gt.json")
    write_json([{**box, "score": 0.5}], tmp_path / "r.json")
    buffer = io.BytesIO()
    Image.new("RGB", (50, 50)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    comparison = compare(
        tmp_path / "gt.json", [tmp_path / "r.json"] * 2, details=True, image_root=tmp_path
    )
    write_report(comparison, tmp_path / "out")
    assert "100.0" in page_of(tmp_path / "out").text
    assert not list((tmp_path / "out").glob("misses*"))  # nothing is missed
