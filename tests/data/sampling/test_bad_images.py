"""Images that cannot be read are replaced: the same ones in every run."""

import itertools

import numpy as np
import pytest
from PIL import Image

from apa_det.data import APADatasetMapper, build_train_loader
from apa_det.data.sampling.bad_images import BadImageReplacer
from apa_det.errors import UserError

NUM = 12
BAD = (2, 7, 8)


@pytest.fixture
def records(tmp_path):
    """Records of images whose gray value is their index; some are truncated, one is missing."""
    result = []
    for i in range(NUM):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (20, 10 + 20 * (i % 2)), (i, i, i)).save(path)
        if i in BAD:
            path.write_bytes(path.read_bytes()[:48])
        size = {"height": 10 + 20 * (i % 2), "width": 20}
        result.append({"file_name": str(path), "image_id": i, **size})
    (tmp_path / f"{BAD[0]}.png").unlink()
    return result


def mapper():
    return APADatasetMapper(True, augmentations=[], image_format="RGB")


def order(records, num_workers=0, seed=5, n=40, **keys):
    loader = build_train_loader(
        records,
        mapper=mapper(),
        seed=seed,
        total_batch_size=2,
        num_workers=num_workers,
        **{"max_bad_images": 3, **keys},
    )
    images = [image for batch in itertools.islice(loader, n) for image in batch]
    assert all((image["image"] == image["image_id"]).all() for image in images)
    return [image["image_id"] for image in images]


def test_same_images_with_any_number_of_workers(records):
    first = order(records, aspect_ratio_grouping=False)  # which depends on the number of workers
    assert not set(first) & set(BAD) and set(first) == set(range(NUM)) - set(BAD)
    for num_workers in (1, 2):
        assert order(records, num_workers, aspect_ratio_grouping=False) == first
    assert order(records) == order(records, 1)
    assert order(records, seed=6, aspect_ratio_grouping=False) != first


def test_only_bad_images_are_replaced(records):
    """Every other image is at its position; a bad one always has the same replacement."""
    plain = build_train_loader(
        records,
        mapper=lambda record: record,
        seed=5,
        total_batch_size=1,
        aspect_ratio_grouping=False,
    )
    expected = [batch[0]["image_id"] for batch in itertools.islice(plain, 60)]
    found = order(records, n=30, aspect_ratio_grouping=False)
    replacements = {}
    for a, b in zip(expected, found, strict=True):
        assert replacements.setdefault(a, b) == b
        assert a == b or a in BAD
    assert set(replacements) == set(range(NUM))


def test_replacement_depends_on_seed_and_index(records):
    def replacements(seed, indices):
        data = BadImageReplacer(records, mapper(), 3, seed)
        return {i: data[i]["image_id"] for i in indices}

    first = replacements(1, BAD)
    assert replacements(1, BAD[::-1]) == first
    assert {tuple(replacements(seed, BAD).values()) for seed in range(5)} != {tuple(first.values())}
    assert replacements(None, BAD) == replacements(0, BAD)


def test_each_bad_image_is_logged_once(records, caplog):
    order(records)
    messages = [r.getMessage() for r in caplog.records if "replaced" in r.getMessage()]
    assert len(messages) == 3
    for i in BAD:
        (message,) = [m for m in messages if records[i]["file_name"] in m]
    assert messages[0].endswith("Bad image 1 of at most 3: replaced.")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("max_bad_images", [0, 2])
def test_too_many(records, num_workers, max_bad_images):
    """The workers of a process count together."""
    pattern = r"^(Cannot read the image|There is no image) [^\n]*\.png[^\n]*$"
    with pytest.raises(UserError, match=pattern) as caught:
        order(records, num_workers, max_bad_images=max_bad_images, n=60)
    allowed = "INPUT.MAX_BAD_IMAGES (dataloader.train.max_bad_images in a LazyConfig) allows 2"
    assert (allowed in str(caught.value)) == (max_bad_images == 2)


def test_all_images_are_bad(records):
    bad = [records[i] for i in BAD]
    with pytest.raises(UserError, match="allows 2 such images"):
        BadImageReplacer(bad, mapper(), 2)[0]


def test_other_errors_and_skipped_images(records):
    def skip(record):
        return record if record["image_id"] % 2 else None

    data = BadImageReplacer(records, skip, 1)
    assert all(data[i]["image_id"] % 2 for i in range(NUM))
    with pytest.raises(ZeroDivisionError):
        BadImageReplacer(records, lambda record: 1 // 0, 9)[0]


def test_without_bad_images_nothing_changes(records):
    good = [record for i, record in enumerate(records) if i not in BAD]
    np.random.seed(0)
    expected = order(good, max_bad_images=0)
    np.random.seed(0)
    assert order(good, max_bad_images=4) == expected


def test_negative_number(records):
    with pytest.raises(UserError, match="INPUT.MAX_BAD_IMAGES .* must be >= 0, got -1"):
        order(records, max_bad_images=-1)
