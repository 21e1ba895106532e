"""Registering and loading datasets in LVIS format."""

import difflib
import logging
import os
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..errors import MissingFileError, UserError
from .dataset_records import DatasetRecords
from .frequency import COMMON_MAX, RARE_MAX, check_thresholds, fill_categories
from .packed import PackedDataset, read_packed
from .validation import has_annotations, read_categories

logger = logging.getLogger(__name__)

_DETECTRON2_LVIS = "detectron2.data.datasets.lvis"
_ORDERED_KEYS = (
    "thing_classes",
    "thing_dataset_id_to_contiguous_id",
    "class_image_count",
    "class_frequency",
)


def register_lvis_format(
    name: str,
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    rare_max: int = RARE_MAX,
    common_max: int = COMMON_MAX,
    allow_outside_root: bool = False,
) -> None:
    """
    Register a dataset in LVIS format with detectron2. The classes come from its file.

    The file is read on first use. Registering the same dataset again has no effect.

    Args:
        name: name of the dataset, for ``cfg.DATASETS.TRAIN`` and ``TEST``.
        json_file: LVIS-format annotations.
        image_root: folder that file names are relative to.
        rare_max: largest image count of a rare category; unused if ``frequency`` is given.
        common_max: the same for a common category.
        allow_outside_root: see :func:`relative_file_name`.

    Raises:
        UserError: the name belongs to another dataset, or the thresholds are invalid.
    """
    check_thresholds(rare_max, common_max)
    wanted = {
        "json_file": os.fspath(json_file),
        "image_root": os.fspath(image_root),
        "evaluator_type": "lvis",
        "rare_max": rare_max,
        "common_max": common_max,
        "allow_outside_root": allow_outside_root,
    }
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog:
        if all(metadata.get(key) == value for key, value in wanted.items()):
            return
        raise UserError(
            f'A dataset named "{name}" is registered already, with other files or thresholds. '
            "Choose another name."
        )
    DatasetCatalog.register(name, _Registered(name))
    metadata.set(**wanted)


def register_datasets(entries: Sequence[Sequence[str]], *, allow_outside_root: bool) -> None:
    """Register the datasets in LVIS format that a config lists.

    Args:
        entries: name, JSON file and image root of each.
        allow_outside_root: see :func:`relative_file_name`.

    Raises:
        UserError: the name is taken.
    """
    for entry in entries:
        register_lvis_format(*entry, allow_outside_root=allow_outside_root)


class _Registered:
    """The function of a dataset in ``DatasetCatalog``."""

    def __init__(self, name: str):
        self._name = name

    def __call__(self) -> list[dict]:
        return list(self.records())

    def records(self) -> DatasetRecords:
        """Return the dataset dicts without building them all.

        Raises:
            MissingFileError: the first image does not exist.
            UserError: see :func:`load_lvis_format`.
        """
        metadata = MetadataCatalog.get(self._name)
        records = load_lvis_format(
            metadata.json_file,
            metadata.image_root,
            self._name,
            allow_outside_root=metadata.get("allow_outside_root", False),
        )
        # Find a wrong image root now, not after the model is built.
        if len(records) and not PathManager.isfile(records[0]["file_name"]):
            raise MissingFileError(
                f'{records[0]["file_name"]}, the first image of "{self._name}", does not exist: '
                f"file names in {metadata.json_file} must be relative to the image root "
                f"{metadata.image_root}. tools/prepare_dataset.py check lists all missing images."
            )
        return records


def registered_packed(name: str) -> PackedDataset | None:
    """Return the content of the file of a dataset, if :func:`registered_records` has it.

    Raises:
        MissingFileError, UserError: see :func:`read_packed`.
    """
    function = DatasetCatalog.data.get(name)
    ours = isinstance(function, _Registered)
    if not ours and getattr(function, "__module__", None) != _DETECTRON2_LVIS:
        return None
    try:
        return read_packed(MetadataCatalog.get(name).json_file)
    except UserError as error:
        if ours or isinstance(error, MissingFileError):
            raise
        logger.warning("%s So detectron2 reads it, which checks less and needs more memory.", error)
        return None


def registered_records(name: str) -> DatasetRecords | None:
    """Return the dataset dicts of a dataset of :func:`register_lvis_format`, not all built.

    Also those of detectron2's LVIS datasets, if their file is valid.

    Returns:
        None for other datasets.

    Raises:
        MissingFileError, UserError: see :func:`load_lvis_format`.
    """
    function = DatasetCatalog.data.get(name)
    if isinstance(function, _Registered):
        return function.records()
    packed = registered_packed(name)
    if packed is None:
        return None
    metadata = MetadataCatalog.get(name)
    ids = [category["id"] for category in packed.categories]
    known = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i - 1 for i in ids}
    # detectron2 joins image_root and coco_url without a slash, and ignores file_name.
    if packed.has_name.any() or not metadata.image_root.endswith("/") or not known.keys() >= {*ids}:
        return None
    classes = np.array([known[i] for i in ids])
    return DatasetRecords.of(packed, metadata.image_root, classes, allow_outside_root=True)


def load_lvis_format(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    dataset_name: str | None = None,
    *,
    allow_outside_root: bool = False,
) -> DatasetRecords:
    """
    Load LVIS-format annotations as detectron2 dataset dicts. Image files are not opened.

    Args:
        json_file: LVIS-format annotations. Category ids need not be contiguous.
        image_root: folder that file names are relative to. The file name of an image without
            ``file_name`` is the end of its ``coco_url``, as in LVIS v1:
            ``train2017/000000391895.jpg``.
        dataset_name: registered dataset whose metadata to set: ``thing_classes``,
            ``thing_dataset_id_to_contiguous_id``, ``class_image_count``, ``class_frequency`` and
            ``num_images`` (images with annotations).
        allow_outside_root: see :func:`relative_file_name`.

    Returns:
        One dict per image, by ascending image id, built when it is read: changes of a dict are only
        kept in a list, as ``DatasetCatalog.get`` returns. ``category_id`` is contiguous from 0, in
        the order of the file's category ids, or that of :func:`set_class_order`.
        ``neg_category_ids`` and ``not_exhaustive_category_ids`` keep the file's ids, as in
        detectron2's ``load_lvis_json``.

    Raises:
        UserError: see :func:`read_lvis_json` and :func:`relative_file_name`.
    """
    packed = read_packed(json_file)
    if dataset_name is not None:
        _set_metadata(dataset_name, packed)
    order = [category["id"] for category in _in_order(packed.categories, dataset_name)]
    contiguous = {category_id: i for i, category_id in enumerate(order)}
    classes = np.array([contiguous[category["id"]] for category in packed.categories])
    records = DatasetRecords.of(packed, image_root, classes, allow_outside_root=allow_outside_root)
    logger.info(
        "Loaded %d images with %d instances of %d classes from %s",
        *(len(records), len(packed.boxes), len(classes), json_file),
    )
    return records


def _in_order(categories: list[dict], name: str | None) -> list[dict]:
    """Return the categories by contiguous id."""
    categories = sorted(categories, key=lambda category: category["id"])
    order = name and MetadataCatalog.get(name).get("class_order")
    if order and {*order} == {category["name"] for category in categories}:
        indices = {class_name: i for i, class_name in enumerate(order)}
        categories.sort(key=lambda category: indices[category["name"]])
    return categories


def set_class_order(name: str, class_names: Sequence[str]) -> None:
    """Set the order of the classes of a dataset of :func:`register_lvis_format`.

    Args:
        name: the dataset.
        class_names: its classes, which get the contiguous ids 0, 1, ...; without this call, they
            are in the order of the category ids.
    """
    metadata = MetadataCatalog.get(name)
    for key in (*_ORDERED_KEYS, "class_order"):
        if key in metadata.as_dict():
            delattr(metadata, key)  # metadata cannot change, but be set again on next use
    metadata.class_order = list(class_names)


def _set_metadata(name: str, packed: PackedDataset) -> None:
    metadata = MetadataCatalog.get(name)
    categories = [dict(category) for category in _in_order(packed.categories, name)]
    thresholds = metadata.get("rare_max", RARE_MAX), metadata.get("common_max", COMMON_MAX)
    fill_categories(categories, packed.count_categories, *thresholds)
    _set_class_names(metadata, categories)
    metadata.set(
        # As in detectron2's LVIS metadata, ids start at 1.
        class_image_count=[
            {
                "id": i,
                "image_count": category["image_count"],
                "instance_count": category["instance_count"],
            }
            for i, category in enumerate(categories, start=1)
        ],
        class_frequency=[category["frequency"] for category in categories],
        num_images=int(np.count_nonzero(np.diff(packed.starts))),
    )


def _set_class_names(metadata: Metadata, categories: list[dict]) -> None:
    metadata.set(
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id={c["id"]: i for i, c in enumerate(categories)},
    )


def ensure_metadata(name: str) -> None:
    """
    Make sure that the metadata of a registered dataset include ``thing_classes``.

    The classes and image counts of a dataset in LVIS format are known once its file has been read:
    read it now if that has not happened yet.

    Raises:
        UserError: no dataset has this name, or see :func:`read_lvis_json`.
    """
    metadata = registered_metadata(name)
    if _is_lvis_format(metadata):
        if metadata.get("class_image_count") is None:
            _set_metadata(name, read_packed(metadata.json_file))
    elif metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)


def ensure_class_names(name: str) -> None:
    """
    Make sure that the metadata of a dataset of :func:`register_lvis_format` have its class names.

    Only the categories of its file are read: image counts and frequencies stay unknown.

    Raises:
        UserError: no dataset has this name, or see :func:`read_categories`.
    """
    metadata = registered_metadata(name)
    if _is_lvis_format(metadata) and metadata.get("thing_classes") is None:
        categories = read_categories(metadata.json_file)
        _set_class_names(metadata, _in_order(categories, name))


def _is_lvis_format(metadata: Metadata) -> bool:
    return "rare_max" in metadata.as_dict()


def require_dataset_files(name: str) -> None:
    """
    Check that the annotation file and the image folders of a registered dataset exist.

    Raises:
        UserError: no dataset has this name, or detectron2 cannot read its file.
        MissingFileError: files are missing. For LVIS, the message says what to download, and into
            which folder.
    """
    metadata = registered_metadata(name)
    needed = [metadata.get("json_file")]
    if name in _LVIS_DOWNLOADS:
        needed += [os.path.join(metadata.image_root, d) for d in _LVIS_DOWNLOADS[name][1]]
    else:
        needed.append(metadata.get("image_root"))
    missing = [
        path
        for path in needed
        if path is not None and "://" not in path and not PathManager.exists(path or ".")
    ]
    if not missing:
        if name in _LVIS_DOWNLOADS and not _has_table(metadata.json_file):
            raise UserError(
                f'{metadata.json_file} has no list "annotations", without which detectron2 cannot '
                f'read "{name}". Register it under another name, with DATASETS.LVIS_FORMAT '
                "[[name, json_file, image_root]] in the config (dataloader.lvis_format in a "
                "LazyConfig)."
            )
        return
    message = f'The dataset "{name}" needs {" and ".join(missing)}: not found.'
    if name in _LVIS_DOWNLOADS:
        archive, folders = _LVIS_DOWNLOADS[name]
        root = os.path.dirname(os.path.dirname(metadata.json_file))
        images = " and ".join(f"{folder}.zip" for folder in folders)
        message += (
            f" Download the annotations {archive} from lvisdataset.org and the COCO images "
            f"{images} from cocodataset.org. Unpack them to the paths above, or set the "
            "environment variable DETECTRON2_DATASETS to the folder that contains lvis/ and coco/ "
            f"(now {os.path.abspath(root)})."
        )
    else:
        message += (
            " Put them there, or register the dataset with the correct paths. For datasets built "
            "into detectron2, set the environment variable DETECTRON2_DATASETS."
        )
    raise MissingFileError(message)


def _has_table(json_file: str) -> bool:
    """Return True unless an LVIS file lacks the list of annotations, which may be empty."""
    if has_annotations(json_file):
        return True
    with open(json_file, "rb") as file:
        return b'"annotations"' in file.read()  # without annotations it is small


def has_ground_truth(name: str) -> bool:
    """Return False for a registered dataset whose file has no annotations."""
    json_file = registered_metadata(name).get("json_file")
    return json_file is None or "://" in json_file or has_annotations(json_file)


def require_annotations(name: str) -> None:
    """Raise a UserError if :func:`has_ground_truth` is False: the dataset cannot be trained on."""
    if not has_ground_truth(name):
        raise UserError(
            f"{registered_metadata(name).json_file}, the file of the training set "
            f'"{name}", has no annotations: train on a set with annotations.'
        )


# Annotation archive and image folders of the LVIS datasets that detectron2 registers.
_LVIS_DOWNLOADS = {
    "lvis_v1_train": ("lvis_v1_train.json.zip", ["train2017"]),
    "lvis_v1_val": ("lvis_v1_val.json.zip", ["train2017", "val2017"]),
    "lvis_v1_test_dev": ("lvis_v1_image_info_test_dev.json.zip", ["test2017"]),
    "lvis_v1_test_challenge": ("lvis_v1_image_info_test_challenge.json.zip", ["test2017"]),
    "lvis_v0.5_train": ("lvis_v0.5_train.json.zip", ["train2017"]),
    "lvis_v0.5_val": ("lvis_v0.5_val.json.zip", ["val2017"]),
    "lvis_v0.5_test": ("lvis_v0.5_image_info_test.json.zip", ["test2017"]),
}


def registered_metadata(name: str) -> Metadata:
    """Return the metadata of a dataset.

    Raises:
        UserError: no dataset has this name.
    """
    if name in DatasetCatalog:
        return MetadataCatalog.get(name)
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UserError(
        f'No dataset named "{name}" is registered.{hint} Register it with '
        "DATASETS.LVIS_FORMAT [[name, json_file, image_root]] in the config, or with "
        "apa_det.data.register_lvis_format(name, json_file, image_root)."
    )
