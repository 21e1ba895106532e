"""YOLO to LVIS: coordinates, folders and lists, and what is not exhaustively annotated."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from apa_det.data.readers import read_yolo
from apa_det.errors import MissingFileError, UserError

DATA = "path: set\ntrain: images/train\nval: images/val\nnames: [cat, dog, fly]\n"


@pytest.fixture
def yolo(save):
    """Boxes: a cat and a dog in a.png (80 × 40), nothing in b.png, a dog in val."""
    save("set/images/train/a.png", (80, 40))
    save("set/images/train/sub/b.png", (20, 20))
    save("set/images/val/c.png", (10, 10))
    save("set/labels/train/a.txt", "0 0.5 0.5 0.25 0.5\n1 0.1 0.9 0.4 0.4\n\n0 0.5 0.5 0.25 0.5\n")
    save("set/labels/val/c.txt", "1 0.5 0.5 1 1\n")
    return save("data.yaml", DATA)


def test_boxes_by_hand(yolo, convert, tmp_path):
    lvis = convert("yolo-to-lvis", yolo, tmp_path / "set", "--rare-max", "0")
    train, val = lvis["train"], lvis["val"]
    assert [(i["file_name"], i["width"], i["height"]) for i in train["images"]] == [
        ("images/train/a.png", 80, 40),
        ("images/train/sub/b.png", 20, 20),
    ]
    # 0.5 × 80 − 0.25 × 80 / 2 = 30; the dog is cut off by 8 pixels at the left, 4 at the bottom
    assert [(a["category_id"], a["bbox"], a["area"]) for a in train["annotations"]] == [
        (1, [30, 10, 20, 20], 400),
        (2, [0, 28, 24, 12], 288),
    ]
    assert [i["neg_category_ids"] for i in train["images"]] == [[3], [1, 2, 3]]
    # the validation set has the counts of the training set
    for dataset in (train, val):
        counts = [(c["name"], c["image_count"], c["frequency"]) for c in dataset["categories"]]
        assert counts == [("cat", 1, "c"), ("dog", 1, "c"), ("fly", 0, "r")]


def test_polygons_by_hand(yolo, save):
    save("set/labels/train/a.txt", "2 0.25 0.25 0.75 0.25 0.75 1 -0.005 1.005\n")
    source = read_yolo(yolo)
    (annotation,) = source.splits["train"]["annotations"]
    assert annotation["segmentation"] == [[20, 10, 60, 10, 60, 40, 0, 40]]
    assert annotation["bbox"] == [0, 10, 60, 30]
    # trapezoid between y = 10 and y = 40, with sides of 40 and 60
    assert source.to_lvis()["train"]["annotations"][0]["area"] == pytest.approx(1500, rel=0.05)
    # a box in a dataset of polygons has no mask: its category is not exhaustively annotated
    save("set/labels/train/sub/b.txt", "1 0.5 0.5 0.5 0.5\n")
    lvis = read_yolo(yolo).to_lvis()["train"]
    assert [a["category_id"] for a in lvis["annotations"]] == [3]
    assert lvis["images"][1]["not_exhaustive_category_ids"] == [2]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(box=st.tuples(*[st.integers(0, 40), st.integers(0, 20)] * 2))
def test_every_box_comes_back(box, yolo, save):
    """Written as YOLO does, from corners on the pixel grid."""
    x, y, width, height = box
    values = ((x + width / 2) / 80, (y + height / 2) / 40, width / 80, height / 40)
    save("set/labels/train/a.txt", " ".join(map(str, (0, *values))))
    (annotation,) = read_yolo(yolo).splits["train"]["annotations"]
    assert annotation["bbox"] == list(box)


def test_ways_to_name_images(yolo, save, tmp_path):
    expected = read_yolo(yolo)
    save("set/list.txt", "images/train/a.png\n./images/train/sub/b.png\n")
    save("set/images/train/a.txt", "./a.png\n")
    for text in (
        DATA.replace("images/train", "list.txt"),
        DATA.replace("images/train", "[images/train/a.txt, images/train/sub]"),
        DATA.replace("images/", "../images/"),  # Roboflow's
        DATA.replace("path: set", f"path: {tmp_path}/set"),
        DATA.replace("[cat, dog, fly]", "{0: cat, 2: fly, 1: dog}") + "nc: 3\ntest: images/val\n",
    ):
        source = read_yolo(save("data.yaml", text))
        assert source.image_root == expected.image_root
        assert {k: source.splits[k] for k in expected.splits} == expected.splits
    # images elsewhere: the root is the folder that they have in common
    (tmp_path / "set/images").rename(tmp_path / "images")
    (tmp_path / "set/labels").rename(tmp_path / "labels")
    lists = DATA.replace("images/train", "../images/train").replace("images/val", "../images/val")
    source = read_yolo(save("data.yaml", lists))
    assert source.image_root == str(tmp_path / "images")
    assert source.splits["train"]["images"][0]["file_name"] == "train/a.png"


def test_repeated_and_hidden_images(yolo, save):
    """An image listed twice counts once; ._a.png is what macOS puts beside a.png."""
    expected = read_yolo(yolo)
    save("set/images/train/._a.png", "no image")
    assert read_yolo(yolo) == expected
    save("set/list.txt", "images/train/a.png\r\nimages/train/sub/b.png\r\n./images/train/a.png")
    save("data.yaml", "\ufeff" + DATA.replace("images/train", "list.txt"))
    assert read_yolo(yolo) == expected


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_are_ignored(yolo, save, tmp_path):
    """As in training."""
    damaged = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 20
    Image.new("RGB", (80, 40)).save(tmp_path / "set/images/train/a.png", exif=damaged)
    (first, _) = read_yolo(yolo).splits["train"]["images"]
    assert (first["width"], first["height"]) == (80, 40)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "set/images/train/a.png", exif=rotated)
    (first, _) = read_yolo(yolo).splits["train"]["images"]
    assert (first["width"], first["height"]) == (40, 80)


def test_test_images_without_labels_are_left_out(yolo, save):
    save("set/images/test/d.png", (10, 10))
    save("data.yaml", DATA + "test: images/test\n")
    assert list(read_yolo(yolo).splits) == ["train", "val"]


# 10^12 elements, if anything printed them
BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 13)
)
BOMB += DATA.replace("[cat, dog, fly]", "*a12")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("set/labels/train/a.txt", "0 0.5 0.5 0.5", "a.txt line 1 must be a class and cx cy"),
        ("set/labels/train/a.txt", "0 0 0 1 1\n0 0.5 0.5 1 1 0.9", "line 2 .* got 6 numbers"),
        ("set/labels/train/a.txt", "0 40 20 20 20", "line 1 has the coordinate 40, .* from 0 to 1"),
        ("set/labels/train/a.txt", "0 nan 0 0 0", "line 1 has the coordinate nan"),
        ("set/labels/train/a.txt", "cat 0 0 1 1", "line 1 must be numbers, got 'cat 0 0 1 1'"),
        ("set/labels/train/a.txt", "3 0 0 1 1", r"the class 3, which is not in names \(0 to 2\)"),
        ("set/labels/train/a.txt", "0.5 0 0 1 1", "the class 0.5, which is not in names"),
        ("data.yaml", "names: [cat", "data.yaml: invalid yaml"),
        ("data.yaml", "cat", "must be a yaml file of keys and values"),
        (
            "data.yaml",
            DATA.replace("[cat, dog, fly]", "cat"),
            "names must be a list of class names",
        ),
        ("data.yaml", DATA.replace("fly", "no"), "Quote names such as yes, no"),
        ("data.yaml", DATA.replace("fly", "cat"), "names must be unique, got 'cat' twice"),
        ("data.yaml", "[" * 5000, "data.yaml is nested too deeply"),
        ("data.yaml", BOMB, "data.yaml has more than 60,000 values"),
        ("data.yaml", DATA.replace("path: set", "path: [set]"), "path must be a path.$"),
        ("data.yaml", DATA.replace("images/val", "[[a]]"), "val must be a path or a list"),
        ("data.yaml", DATA + "nc: 2", "nc must be the number of names, 3"),
        ("data.yaml", "names: [cat]", "has neither train nor val"),
        ("data.yaml", DATA.replace("images/val", "nowhere"), "val: .*nowhere is neither a folder"),
        ("data.yaml", DATA.replace("images/val", "labels"), "val has no images"),
        ("set/images/train/a.png", "no image", "Cannot read the image .*a.png"),
    ],
)
def test_errors(name, content, message, yolo, save):
    save(name, content)
    with pytest.raises(UserError, match=message):
        read_yolo(yolo)


def test_missing_files(yolo, tmp_path, save):
    with pytest.raises(MissingFileError, match="There is no file .*none.yaml"):
        read_yolo(tmp_path / "none.yaml")
    save("set/list.txt", "images/train/none.png\nimages/train/a.png\n")
    save("data.yaml", DATA.replace("images/train", "list.txt"))
    with pytest.raises(MissingFileError, match="none.png, an image, does not exist"):
        read_yolo(yolo)
    (tmp_path / "set/labels/val/c.txt").unlink()
    save("data.yaml", DATA)
    with pytest.raises(MissingFileError, match="no image of val has labels: .*labels/val/c.txt"):
        read_yolo(yolo)
