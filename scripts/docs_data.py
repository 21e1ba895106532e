"""Small files in place of those that the commands of the documentation name.

They are made from the quickstart's dataset and checkpoint in the current folder.
"""

import gzip
import json
from pathlib import Path
from typing import Any

DATA = "datasets/quickstart"
RESULTS = "output/inference/lvis_instances_results.json"
CHECKPOINT = "output/model_final.pth"

# Names in the documentation, and the small file or folder in their place
STAND_INS = {
    "images": "small/images",
    "lvis_images": DATA,
    "street.jpg": f"{DATA}/val/000000000001.jpg",
    "clip.mp4": "small/clip.mp4",
    "a.pth": CHECKPOINT,
    "b.pth": CHECKPOINT,
    "c.pth": CHECKPOINT,
    "results.json": RESULTS,
    "baseline.json": RESULTS,
    "a.json": RESULTS,
    "b.json.gz": "small/results.json.gz",
    "mine.json.gz": "small/results.json.gz",
    "lvis_v1_val.json": f"{DATA}/val.json",
    "lvis_v1_minival.json": "small/minival.json",
    "results_on_val.json": RESULTS,
    "lvis_v1_image_info_test_dev.json": "small/image_info.json",
    "coco": DATA,
    "train.json": f"{DATA}/train.json",
    "val.json": f"{DATA}/val.json",
    "all.json": f"{DATA}/train.json",
    "annotations": "small/coco",
    "instances_train.json": "small/coco/train.json",
    "instances_val.json": "small/coco/val.json",
    "data.yaml": "small/yolo/data.yaml",
    "labels": "small/yolo/labels",
    "VOCdevkit": "small/VOCdevkit",
    "open-images": "small/open-images",
    "path/to/imagenet": "small/imagenet",
    "datasets/coco": DATA,
    "datasets/lvis/lvis_v1_val.json": f"{DATA}/val.json",
    "output/lvis/inference/lvis_instances_results.json": RESULTS,
}


def link(folder: Path, source: Path, written: set[str]) -> None:
    """Make a link in ``folder`` for each stand-in in ``source`` but those that commands write."""
    for name, target in STAND_INS.items():
        if name not in written:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(source / target)


def write_all() -> None:
    """Write the stand-ins that are no files of the quickstart into ``small/``."""
    datasets = {s: json.loads(Path(f"{DATA}/{s}.json").read_text()) for s in ("train", "val")}
    images = Path("small/images")
    images.mkdir(parents=True)
    for split in datasets:
        (images / split).symlink_to(Path(DATA, split).resolve())
    for number, file in enumerate(sorted(Path(DATA, "val").glob("*.jpg"))[:2]):
        (images / f"{number}.jpg").symlink_to(file.resolve())
    write_video()
    Path("small/results.json.gz").write_bytes(gzip.compress(Path(RESULTS).read_bytes()))
    part = datasets["val"]["images"][::2]
    ids = {image["id"] for image in part}
    kept = [x for x in datasets["val"]["annotations"] if x["image_id"] in ids]
    write("minival.json", json.dumps({**datasets["val"], "images": part, "annotations": kept}))
    info = {key: datasets["val"][key] for key in ("images", "categories")}
    write("image_info.json", json.dumps(info))
    for split, dataset in datasets.items():
        write_imagenet(split)
        write_yolo(split, dataset)
        write_voc(split, dataset)
        write_open_images("train" if split == "train" else "validation", dataset)
        write_coco(split, dataset)  # last: it changes the dataset


def write(path: str, text: str) -> None:
    file = Path("small", path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def write_video() -> None:
    import cv2

    writer = cv2.VideoWriter("small/clip.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 5, (160, 160))
    for file in sorted(Path(DATA, "val").glob("*.jpg")):
        writer.write(cv2.imread(str(file)))
    writer.release()


def write_imagenet(split: str) -> None:
    for number, file in enumerate(sorted(Path(DATA, split).glob("*.jpg"))[:6]):
        path = Path("small/imagenet", split, f"class_{number % 2}", file.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file.resolve())


def write_coco(split: str, dataset: dict[str, Any]) -> None:
    for image in dataset["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    write(f"coco/{split}.json", json.dumps(dataset))


def write_yolo(split: str, dataset: dict[str, Any]) -> None:
    ids = [category["id"] for category in dataset["categories"]]
    for image in dataset["images"]:
        width, height, text = image["width"], image["height"], ""
        for annotation in dataset["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                text += f"{ids.index(annotation['category_id'])} {' '.join(map(str, box))}\n"
        write(f"yolo/labels/{split}/{Path(image['file_name']).stem}.txt", text)
    names = json.dumps([c["name"] for c in dataset["categories"]])
    write("yolo/data.yaml", f"train: images/train\nval: images/val\nnames: {names}\n")


def write_voc(split: str, dataset: dict[str, Any]) -> None:
    root = "VOCdevkit/VOC2012"
    names = {c["id"]: c["name"] for c in dataset["categories"]}
    stems = []
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
        stems.append(stem)
        write(f"{root}/Annotations/{stem}.xml", f"{text}</annotation>")
        path = Path("small", root, "JPEGImages", f"{stem}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(Path(DATA, image["file_name"]).resolve())
    write(f"{root}/ImageSets/Main/{split}.txt", "\n".join(stems))


def write_open_images(split: str, dataset: dict[str, Any]) -> None:
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
    split_folder = Path(dataset["images"][0]["file_name"]).parent
    Path("small/open-images", split).symlink_to(Path(DATA, split_folder).resolve())
