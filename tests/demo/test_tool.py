"""The demo command: drawn images and videos, and their detections as JSON."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from apa_det.data.image_files import read_image
from apa_det.demo import build_predictor
from apa_det.engine import read_job


@pytest.fixture
def main(tool, detector):
    def run(*arguments, threshold="0"):
        flags = ["--config-file", detector.yaml, "--confidence-threshold", threshold]
        return tool("demo", *flags, *arguments, "--opts", *detector.opts)

    return run


def test_images(main, detector, tmp_path, capsys):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    out = tmp_path / "out"
    assert main("--input", broken, *detector.images[:2], "--output", out) == 1
    assert capsys.readouterr().out.count(f"Cannot read the image {broken}") == 1
    records = json.loads((out / "detections.json").read_text())
    assert not [path for path in out.rglob("*") if path.name == "broken.jpg"]

    predictor = build_predictor(read_job(detector.yaml, detector.opts), "0")
    classes = predictor.classes
    for image_id, path in enumerate(detector.images[:2], start=1):
        expected = predictor(read_image(path, "RGB"))
        ours = [record for record in records if record["image_id"] == image_id]
        assert len(ours) == len(expected) == 5
        for record, c, score, box in zip(
            ours, expected.pred_classes, expected.scores, expected.pred_boxes.tensor, strict=True
        ):
            assert record["file_name"] == path
            assert record["category_name"] == classes.names[c]
            assert record["category_id"] == classes.category_ids[c]
            assert record["frequency"] == classes.groups.names[classes.group_indices[c]]
            assert record["score"] == pytest.approx(score.item())
            x, y, w, h = record["bbox"]
            assert [x, y, x + w, y + h] == pytest.approx(box.tolist(), abs=1e-3)
            assert record["segmentation"]["size"] == [64, 64]
    (drawn,) = out.rglob(Path(detector.images[0]).name)
    width, height = Image.open(drawn).size
    assert width == 640 and height > 640  # with the legend


def test_video(main, tmp_path):
    path, out = tmp_path / "clip.avi", tmp_path / "out/drawn.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for value in (0, 90, 180):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    assert main("--video-input", path, "--output", out) == 0
    records = json.loads((tmp_path / "out/drawn.json").read_text())
    assert {record["frame"] for record in records} == {0, 1, 2}
    assert all(r["image_id"] == r["frame"] and r["file_name"] == str(path) for r in records)
    video = cv2.VideoCapture(str(out))
    assert video.get(cv2.CAP_PROP_FPS) == 10 and video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    height, width, _ = video.read()[1].shape
    assert width == 640 and height > 480  # with the legend


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def odd_images(folder):
    """Write images of unusual formats and sizes, by their names."""
    gray, color = noise(30, 40), noise(30, 40, 3)
    files = {
        "16_bits.png": Image.fromarray(gray.astype(np.uint16) * 257),
        "gray.png": Image.fromarray(gray),
        "cmyk.jpg": Image.fromarray(color).convert("CMYK"),
        "palette.png": Image.fromarray(color).convert("P"),
        "rgba.png": Image.fromarray(noise(30, 40, 4)),
        "one_pixel.png": Image.new("RGB", (1, 1)),
        "one_row.png": Image.fromarray(noise(1, 50, 3)),
    }
    folder.mkdir()
    for name, image in files.items():
        image.save(folder / name)
    return sorted(files)


def test_odd_images(main, tmp_path, capsys, monkeypatch):
    """All are drawn; those that cannot be read get a sentence each, and the rest goes on."""
    folder, out = tmp_path / "odd", tmp_path / "out"
    names = odd_images(folder)
    assert main("--input", folder, "--output", out) == 0
    assert sorted(path.name for path in out.glob("*.???")) == names
    records = json.loads((out / "detections.json").read_text())
    detections = {
        name: [(r["category_id"], r["bbox"], r["score"]) for r in records if r["file_name"] == path]
        for name in names
        for path in [str(folder / name)]
    }
    assert detections["16_bits.png"] == detections["gray.png"]
    assert all(detections.values())

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    Image.fromarray(noise(20, 20).astype(np.float32)).save(folder / "float.tif")
    Image.new("RGB", (100, 100)).save(folder / "huge.png")
    broken = (folder / "cmyk.jpg").read_bytes()[:-500]
    (folder / "truncated.jpg").write_bytes(broken)
    Image.new("RGB", (1, 5000)).save(folder / "narrow.png")
    capsys.readouterr()
    assert main("--input", folder, "--output", tmp_path / "second") == 1
    printed = capsys.readouterr().out
    for name, text in (
        ("float.tif", "its pixels are floats; convert them to 8 or 16 bits."),
        ("huge.png", "Image size (10000 pixels) exceeds limit of 8000 pixels, could be"),
        ("truncated.jpg", "image file is truncated"),
    ):
        assert printed.count(f"Cannot read the image {folder / name}: {text}") == 1
    text = f"The image {folder / 'narrow.png'} of 1 x 5000 pixels is too narrow: its shorter side"
    assert printed.count(text) == 1
    assert sorted(path.name for path in (tmp_path / "second").glob("*.???")) == names


def test_no_detections(main, tiny_dataset, tmp_path, capsys):
    assert main("--input", tiny_dataset / "val", "--output", tmp_path, threshold="1") == 0
    assert json.loads((tmp_path / "detections.json").read_text()) == []
    assert "0 detections" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*.jpg"))) == 6


def test_one_line_errors_before_any_work(main, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("apa_det.demo.build_predictor", None)  # must not be called
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    for arguments, message in (
        (["--input", "nowhere.jpg"], "no image, folder or pattern nowhere.jpg"),
        (["--video-input", "nowhere.mp4"], "no video nowhere.mp4"),
        (["--video-input", text], f"OpenCV cannot read the video {text}"),
    ):
        assert main(*arguments, "--output", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_one_line_error_of_the_thresholds(main, detector, tmp_path, capsys):
    arguments = ["--input", detector.images[0], "--output", tmp_path]
    assert main(*arguments, threshold="x:0.5,0.1") == 2
    assert capsys.readouterr().err.endswith(
        "'x' in the confidence threshold 'x:0.5,0.1'; the groups are r, c, f.\n"
    )


def evaluated(gt, results, tmp_path, tool):
    """Return the exit status of evaluate-predictions, and its metrics."""
    metrics = tmp_path / "metrics.json"
    flags = ("--gt", gt, "--results", results, "--json", metrics)
    status = tool("evaluate_predictions", *flags)
    return status, json.loads(metrics.read_text())["files"][0] if status == 0 else None


def test_results_can_be_evaluated(main, tiny_dataset, tmp_path, tool, capsys):
    """As they are, by file name; with --gt, they also have its ids."""
    gt, out = tiny_dataset / "val.json", tmp_path / "out"
    truth = json.loads(gt.read_text())
    assert main("--input", tiny_dataset / "val", "--output", out) == 0
    status, metrics = evaluated(gt, out / "detections.json", tmp_path, tool)
    assert status == 0 and metrics["detections"] == 30
    assert main("--input", tiny_dataset / "val", "--output", out, "--gt", gt) == 0
    records = json.loads((out / "detections.json").read_text())
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    categories = {category["id"]: category["name"] for category in truth["categories"]}
    assert len(records) == 30
    assert all(r["file_name"].endswith(f"/{names[r['image_id']]}") for r in records)
    assert all(categories[r["category_id"]] == r["category_name"] for r in records)
    keys = ("image_id", "category_id", "score", "bbox", "segmentation")
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([{key: r[key] for key in keys} for r in records]))
    _, expected = evaluated(gt, plain, tmp_path, tool)
    for key in ("bbox", "segm", "detections"):
        assert metrics[key] == expected[key]


def test_other_ground_truths(main, tiny_dataset, tmp_path, tool, capsys):
    gt, out = tiny_dataset / "val.json", tmp_path / "out"
    other = json.loads(gt.read_text())
    for image in other["images"]:
        image["file_name"] = f"x{image['id']}.jpg"
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps(other))
    assert main("--input", tiny_dataset / "val", "--output", out) == 0
    capsys.readouterr()
    assert evaluated(renamed, out / "detections.json", tmp_path, tool)[0] == 2
    message = capsys.readouterr().err
    assert "file_name must be that of an image of the ground truth, got" in message
    assert main("--input", tiny_dataset / "val", "--output", out, "--gt", renamed) == 2
    message = capsys.readouterr().err
    assert f"{renamed}: file_name must be that of an image of the ground truth" in message
    assert main("--video-input", "a.mp4", "--output", tmp_path / "b.mp4", "--gt", gt) == 2
    assert "--gt is for images" in capsys.readouterr().err
    for category in other["categories"]:
        category["name"] += " renamed"
    for image, original in zip(other["images"], json.loads(gt.read_text())["images"], strict=True):
        image["file_name"] = original["file_name"]
    renamed.write_text(json.dumps(other))
    assert main("--input", tiny_dataset / "val", "--output", out, "--gt", renamed) == 2
    assert f"{renamed} lacks a class of the model: category_name" in capsys.readouterr().err
