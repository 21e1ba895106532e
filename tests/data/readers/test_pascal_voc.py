"""Pascal VOC to LVIS: 1-based corners, difficult objects, and XML that must not be trusted."""

import sys

import pytest

from apa_det.data.readers import read_pascal_voc
from apa_det.errors import MissingFileError, MissingPackageError, UserError


def xml(*objects, size="<size><width>30</width><height>20</height></size>", name="a.jpg"):
    return f"<annotation><filename>{name}</filename>{size}{''.join(objects)}</annotation>"


def item(name, box, marks=""):
    keys = ("xmin", "ymin", "xmax", "ymax")
    corners = "".join(f"<{key}>{x}</{key}>" for key, x in zip(keys, box, strict=True))
    return f"<object><name>{name}</name>{marks}<bndbox>{corners}</bndbox></object>"


@pytest.fixture
def voc(save, tmp_path):
    """A dog, a difficult dog and a cat, split into train (a, b) and val (c)."""
    for name in ("a.jpg", "b.png", "c.jpg"):
        save(f"VOC/JPEGImages/{name}", (30, 20))
    part = f"<part>{item('head', (1, 1, 2, 2))}</part>".replace("object", "thing")
    dog = item("dog", (1, 1, 10, 20), f"<truncated>1</truncated>{part}")
    hard = item("dog", (5, 5, 6.5, 7), "<difficult>1</difficult>")
    save("VOC/Annotations/a.xml", xml(dog, hard, item(" cat ", (0, 3, 30, 25))))
    save("VOC/Annotations/b.xml", xml(hard, size="", name="C:\\photos\\b.png"))
    save("VOC/Annotations/c.xml", xml(dog))
    save("VOC/ImageSets/Main/train.txt", "a\nb -1\n")
    save("VOC/ImageSets/Main/val.txt", "c\n")
    return tmp_path / "VOC"


def test_by_hand(voc, convert):
    lvis = convert("voc-to-lvis", voc, voc)
    train, val = lvis["train"], lvis["val"]
    assert (
        [c["name"] for c in train["categories"]]
        == ["cat", "dog"]
        == [c["name"] for c in val["categories"]]
    )
    assert [(i["file_name"], i["width"], i["height"]) for i in train["images"]] == [
        ("JPEGImages/a.jpg", 30, 20),
        ("JPEGImages/b.png", 30, 20),
    ]
    # columns 1 to 10 are 10 pixels from 0; the cat is clipped to the image
    assert [(a["category_id"], a["bbox"], a["area"]) for a in train["annotations"]] == [
        (2, [0, 0, 10, 20], 200),
        (1, [0, 2, 30, 18], 540),
    ]
    assert train["annotations"][0]["truncated"] == 1 and "truncated" not in train["annotations"][1]
    # difficult dogs: neither present nor absent
    assert [i["neg_category_ids"] for i in train["images"]] == [[], [1]]
    assert [i["not_exhaustive_category_ids"] for i in train["images"]] == [[2], [2]]
    assert train["info"]["coco_to_lvis"]["crowds"] == 2


def test_boxes_are_those_of_detectron2(voc):
    """Its loader of VOC, which fixes the splits' names and the classes."""
    from detectron2.data.datasets.pascal_voc import load_voc_instances

    (voc / "ImageSets/Main/train.txt").write_text("a\nc\n")
    theirs = load_voc_instances(str(voc), "train", (" cat ", "dog"))[0]["annotations"]
    ours = read_pascal_voc(voc).splits["train"]["annotations"]
    for their, our in zip(theirs[:2], ours, strict=False):
        x, y, width, height = our["bbox"]
        assert their["bbox"] == [x, y, x + width, y + height]


def test_without_lists_all_images_are_train(voc):
    for path in (voc / "ImageSets/Main").iterdir():
        path.unlink()
    (split,) = read_pascal_voc(voc).splits.items()
    assert split[0] == "train" and len(split[1]["images"]) == 3


def test_the_file_name_of_the_xml_is_the_last_resort(voc, save):
    """Renamed files often keep the old name inside; cameras write .JPG."""
    save("VOC/Annotations/c.xml", xml(name="a.jpg"))
    (voc / "JPEGImages/c.jpg").rename(voc / "JPEGImages/c.JPG")
    save("VOC/ImageSets/Main/val.txt", "\ufeffc\r\nc\r\n")
    (image,) = read_pascal_voc(voc).splits["val"]["images"]
    assert image["file_name"] == "JPEGImages/c.JPG"
    (voc / "JPEGImages/c.JPG").unlink()
    (image,) = read_pascal_voc(voc).splits["val"]["images"]
    assert image["file_name"] == "JPEGImages/a.jpg"


def test_categories_of_the_training_set(voc):
    categories = [{"id": 9, "name": "dog", "image_count": 3}, {"id": 4, "name": "cat"}]
    splits = read_pascal_voc(voc, categories).splits
    assert splits["val"]["categories"] == [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}]
    assert [a["category_id"] for a in splits["train"]["annotations"]] == [9, 9, 4, 9]
    with pytest.raises(UserError, match="a.xml has the category 'dog', which must be one of .*cat"):
        read_pascal_voc(voc, categories[1:])


BOMB = '<!DOCTYPE a [<!ENTITY b "xxxx"><!ENTITY c "&b;&b;&b;">]>' + xml().replace("a.jpg", "&c;")


@pytest.mark.parametrize(
    "content, message",
    [
        (BOMB, "a.xml declares entities, which no annotation needs. It was not read"),
        ("<annotation>", "a.xml is not valid XML: "),
        (xml(item("", (1, 1, 2, 2))), "a.xml object 1 has no name"),
        (
            xml(item("dog", (1, 1, 2, "x"))),
            "a.xml object 1 must have a number in bndbox/ymax, got 'x'",
        ),
        (xml("<object><name>dog</name></object>"), "a number in bndbox/xmin, got 'None'"),
        (xml(item("dog", (1, "nan", 2, 2))), "a number in bndbox/ymin, got 'nan'"),
        (
            xml(size="<size><width>20</width><height>30</height></size>"),
            "a.xml says that .*a.jpg has the size 20 x 30, but it has 30 x 20",
        ),
    ],
)
def test_invalid_files(content, message, voc, save):
    save("VOC/Annotations/a.xml", content)
    with pytest.raises(UserError, match=message):
        read_pascal_voc(voc)


def test_missing_files(voc, tmp_path, monkeypatch):
    with pytest.raises(MissingFileError, match="name the folder that contains Annotations"):
        read_pascal_voc(tmp_path)
    (voc / "JPEGImages/a.jpg").unlink()
    with pytest.raises(MissingFileError, match="JPEGImages/a.jpg, an image, does not exist"):
        read_pascal_voc(voc)
    (voc / "Annotations/a.xml").unlink()
    with pytest.raises(MissingFileError, match="a.xml, the annotations of an image, does not"):
        read_pascal_voc(voc)
    monkeypatch.setitem(sys.modules, "defusedxml", None)
    with pytest.raises(MissingPackageError, match="pip install defusedxml"):
        read_pascal_voc(voc)
