"""Open Images to LVIS: only what people have verified counts."""

import pytest

from apa_det.data.readers import read_open_images
from apa_det.errors import MissingFileError, UserError

CLASSES = '/m/cat,Cat\n/m/dog,Dog\n/m/fly,"Fly, small"\n/m/ant,Ant\n'
BOX_HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepiction,IsInside\n"
)
BOXES = (
    BOX_HEADER + "a1,xclick,/m/cat,1,0.25,0.75,0.1,0.5,0,0,0,0,0\n"
    "a1,xclick,/m/dog,1,0.5,1,0,1,0,0,1,0,0\n"
    "zz,xclick,/m/dog,1,0.5,1,0,1,0,0,0,0,0\n"
)
LABELS = (
    "ImageID,Source,LabelName,Confidence\n"
    "a1,verification,/m/cat,1\n"
    "a1,verification,/m/dog,1\n"
    "a1,verification,/m/fly,0\n"
    "a1,verification,/m/tree,0\n"
    "b2,crowdsource-verification,/m/ant,1\n"
    "b2,verification,/m/cat,0\n"
    "b2,machine,/m/dog,0\n"
    "b2,verification,/m/fly,0.3\n"
    "yy,verification,/m/fly,1\n"
)

TRAIN_BOXES = "oi/oidv6-train-annotations-bbox.csv"
TRAIN_LABELS = "oi/train-annotations-human-imagelabels-boxable.csv"


@pytest.fixture
def files(save, tmp_path):
    save("oi/class-descriptions-boxable.csv", CLASSES)
    save("oi/oidv6-train-annotations-bbox.csv", BOXES)
    save("oi/train-annotations-human-imagelabels-boxable.csv", LABELS)
    save("oi/train/a1.jpg", (40, 20))
    save("oi/train/b2.jpg", (40, 20))
    save("oi/train/unlabeled.jpg", (40, 20))
    return tmp_path / "oi"


def test_by_hand(files, convert, caplog):
    train = convert("open-images-to-lvis", files, files)["train"]
    assert [c["name"] for c in train["categories"]] == ["Cat", "Dog", "Fly, small", "Ant"]
    first, second = train["images"]
    assert (first["file_name"], second["file_name"]) == ("train/a1.jpg", "train/b2.jpg")
    (cat,) = train["annotations"]
    assert (cat["category_id"], cat["bbox"], cat["area"]) == (1, [10, 2, 20, 8], 160)
    # a1: a group of dogs, and no flies; of the ant, nothing is known
    assert (first["neg_category_ids"], first["not_exhaustive_category_ids"]) == ([3], [2])
    # b2: ants without boxes, and no cats; the machine's dog and the unsure fly do not count
    assert (second["neg_category_ids"], second["not_exhaustive_category_ids"]) == ([1], [4])
    assert [c["image_count"] for c in train["categories"]] == [1, 0, 0, 0]
    assert "Skipped the rows of 2 images" in caplog.text


def test_line_ends_and_byte_order_marks(files, save):
    expected = read_open_images(files)
    for name, text in ((TRAIN_BOXES, BOXES), (TRAIN_LABELS, LABELS)):
        path = save(name, "")
        path.write_bytes(("\ufeff" + text.replace("\n", "\r\n") + "\r\n").encode())
    assert read_open_images(files) == expected


def test_contradictions(files, save):
    """A box beats a negative label, and so does a positive label without boxes."""
    labels = LABELS + "a1,verification,/m/cat,0\nb2,verification,/m/ant,0\n"
    save("oi/train-annotations-human-imagelabels-boxable.csv", labels)
    first, second = read_open_images(files).to_lvis()["train"]["images"]
    assert first["neg_category_ids"] == [3]
    assert (second["neg_category_ids"], second["not_exhaustive_category_ids"]) == ([1], [4])


def test_splits_and_image_root(files, save, tmp_path):
    save("oi/validation-annotations-bbox.csv", BOXES)
    save("oi/oidv7-validation-annotations-human-imagelabels.csv", LABELS)
    (files / "train").rename(tmp_path / "train")
    save("validation/b2.jpg", (10, 10))
    source = read_open_images(files, tmp_path)
    assert source.image_root == str(tmp_path)
    assert {k: len(split["images"]) for k, split in source.splits.items()} == {"train": 2, "val": 1}
    lvis = source.to_lvis(rare_max=0)
    assert [c["frequency"] for c in lvis["val"]["categories"]] == ["c", "r", "r", "r"]


def test_repeated_class_names(files, save):
    save("oi/class-descriptions-boxable.csv", "LabelName,DisplayName\n" + CLASSES + "/m/x,Cat\n")
    names = [c["name"] for c in read_open_images(files).splits["train"]["categories"]]
    assert names == ["Cat", "Dog", "Fly, small", "Ant", "Cat (/m/x)"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        (TRAIN_BOXES, BOXES.replace("/m/dog", "/m/elk"), "line 3 has the class /m/elk, which is"),
        (
            TRAIN_BOXES,
            BOXES.replace("0.25", "40"),
            "line 2 must have numbers from 0 to 1, got '40'",
        ),
        (TRAIN_BOXES, BOXES.replace("0.25", "nan"), "line 2 must have numbers from 0 to 1"),
        (TRAIN_BOXES, BOXES.replace("XMin", "X"), "must have the column XMin in its first line"),
        (TRAIN_BOXES, "", "must have the column ImageID"),
        (TRAIN_BOXES, BOXES + "a1,xclick,/m/cat,1,0.2", "line 5 is cut off"),
        (TRAIN_LABELS, LABELS.replace(",0.3", ",yes"), "line 9 must have numbers .* got 'yes'"),
        ("oi/class-descriptions-boxable.csv", "/m/cat\n", r"line 1 must be .* got \['/m/cat'\]"),
        ("oi/class-descriptions-boxable.csv", CLASSES * 2, "line 5 must be a new label"),
        ("oi/class-descriptions-boxable.csv", "", "has no classes"),
        ("oi/train-annotations-bbox.csv", BOXES, "several files .*oidv6-train.*, train-anno"),
    ],
)
def test_errors(name, content, message, files, save):
    save(name, content)
    with pytest.raises(UserError, match=message):
        read_open_images(files)


def test_what_lvis_format_cannot_hold(files, save):
    save("oi/class-descriptions-boxable.csv", CLASSES.replace("Cat", "C\x1bat"))
    with pytest.raises(UserError, match=r"The split train: category 1: name must .*C\\x1bat"):
        read_open_images(files).to_lvis()


def test_missing_files(files):
    def missing(path, message):
        path.rename(path.with_name("renamed"))
        with pytest.raises(UserError, match=message):
            read_open_images(files)
        path.with_name("renamed").rename(path)

    missing(files / "class-descriptions-boxable.csv", "has no .*class-descriptions-boxable.csv")
    missing(files / "oidv6-train-annotations-bbox.csv", "has no .*-annotations-bbox.csv")
    labels = files / "train-annotations-human-imagelabels-boxable.csv"
    missing(labels, "but no .train-annotations-human-imagelabels.*verified as absent")
    missing(files / "train", "oi/train, the folder of the images, does not exist")
    for path in (files / "train").glob("[ab]*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match="has none of the images of .*bbox.csv"):
        read_open_images(files)
    with pytest.raises(MissingFileError):
        read_open_images(files.parent)
