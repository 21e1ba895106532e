"""The commands of your-own-data.md run as printed; only trainings are made shorter."""

import json
from pathlib import Path

import pytest

import apa_det_cli
from apa_det.data import generate_dataset, read_lvis_json

SHORT = "SOLVER.MAX_ITER 1 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 1".split()
OFFLINE = ["--weights", "none", "--num-gpus", "0"]


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def write_open_images(split: str, dataset: dict) -> None:
    boxes = "ImageID,LabelName,IsGroupOf,XMin,XMax,YMin,YMax\n"
    labels = "ImageID,Source,LabelName,Confidence\n"
    images = {image["id"]: image for image in dataset["images"]}
    for annotation in dataset["annotations"]:
        image = images[annotation["image_id"]]
        name, width, height = Path(image["file_name"]).stem, image["width"], image["height"]
        x, y, w, h = annotation["bbox"]
        corners = (x / width, (x + w) / width, y / height, (y + h) / height)
        label = f"/m/{annotation['category_id']}"
        boxes += f"{name},{label},0,{','.join(map(str, corners))}\n"
        labels += f"{name},verification,{label},1\n"
    write(f"open-images/{split}-annotations-bbox.csv", boxes)
    write(f"open-images/{split}-annotations-human-imagelabels.csv", labels)
    classes = "".join(f"/m/{c['id']},{c['name']}\n" for c in dataset["categories"])
    write("open-images/class-descriptions-boxable.csv", classes)


def write_voc(split: str, dataset: dict) -> None:
    root = "VOCdevkit/VOC2012"
    names = {c["id"]: c["name"] for c in dataset["categories"]}
    for image in dataset["images"]:
        text = "<annotation>"
        for annotation in dataset["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
                name = names[annotation["category_id"]]
                text += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
        stem = f"{split}_{Path(image['file_name']).stem}"
        write(f"{root}/Annotations/{stem}.xml", f"{text}</annotation>")
        image["voc"] = stem
        path = Path(root, "JPEGImages", f"{stem}.png")
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(Path("images", image["file_name"]).resolve())
    lists = "\n".join(image["voc"] for image in dataset["images"])
    write(f"{root}/ImageSets/Main/{split}.txt", lists)


def write_yolo(split: str, dataset: dict) -> None:
    ids = [c["id"] for c in dataset["categories"]]
    for image in dataset["images"]:
        text = ""
        for annotation in dataset["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                box = (x + w / 2) / image["width"], (y + h / 2) / image["height"]
                box += w / image["width"], h / image["height"]
                text += f"{ids.index(annotation['category_id'])} {' '.join(map(str, box))}\n"
        write(f"labels/{split}/{Path(image['file_name']).stem}.txt", text)
    names = json.dumps([c["name"] for c in dataset["categories"]])
    write("data.yaml", f"train: images/train\nval: images/val\nnames: {names}\n")


@pytest.fixture
def folder(tmp_path, monkeypatch, forget_datasets):
    """The current folder, with a dataset in all formats under the names of the page."""
    monkeypatch.chdir(tmp_path)
    generate_dataset("images", num_train=6, num_val=2, num_classes=3)
    for split, other in (("train", "train"), ("val", "validation")):
        dataset = read_lvis_json(f"images/{split}.json")
        if split == "train":
            write("all.json", json.dumps(dataset))
        write_yolo(split, dataset)
        write_voc(split, dataset)
        write_open_images(other, dataset)
        Path(f"open-images/{other}").symlink_to(Path(f"images/{split}").resolve())
        for image in dataset["images"]:
            del image["neg_category_ids"], image["not_exhaustive_category_ids"]
        for path in (f"annotations/{split}.json", f"instances_{split}.json"):
            write(path, json.dumps(dataset))
    return tmp_path


def test_commands(folder, pages, commands, capsys):
    ran = commands(pages["docs/your-own-data.md"])
    for program, *argv in ran:
        assert program == "apa-det"
        if "--write-config" in argv or "write-config" in argv:
            argv += OFFLINE
        assert apa_det_cli.main([*argv, *(SHORT if argv[0] == "train" else ())]) == 0, argv
        if "--write-config" in argv:  # it prints the other two commands
            printed = capsys.readouterr().out.splitlines()[-2:]
            assert [line.split() for line in printed] == ran[1:3]
    assert Path("output/my/metrics.json").is_file()
    for name in ("my.yaml", "split/val.json", "split/part_5.json", "datasets/synthetic/val.json"):
        assert Path(name).is_file(), name
