"""The dataset dicts of registered datasets, for loaders."""

import logging
from collections.abc import Container, Sequence

import numpy as np
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import check_metadata_consistency

from .class_histogram import log_class_histogram
from .dataset_records import DatasetRecords
from .lvis_format import registered_records

logger = logging.getLogger(__name__)


def get_dataset_records(
    names: str | Sequence[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Sequence[str] | None = None,
    check_consistency: bool = True,
) -> DatasetRecords | list[dict]:
    """Return what detectron2's ``get_detection_dataset_dicts`` does, with less time and memory.

    If all datasets are in LVIS format, dicts are built when they are read, from data that the
    processes of a machine share. Other datasets, keypoints and proposals are left to detectron2.

    Args:
        names: registered datasets.
        filter_empty: leave out images without annotations.
        min_keypoints, proposal_files, check_consistency: as in detectron2.

    Raises:
        MissingFileError, UserError: see :func:`load_lvis_format`.
    """
    names = [names] if isinstance(names, str) else list(names)
    parts: list[DatasetRecords] = []
    if not min_keypoints and proposal_files is None:
        for name in names:
            part = registered_records(name)
            if part is None or not len(part):
                break
            parts.append(part)
    records = DatasetRecords.concatenate(parts) if len(parts) == len(names) > 0 else None
    kept = None if records is None else np.flatnonzero(records.num_annotations > 0)
    if kept is None or filter_empty and not len(kept):
        arguments = (filter_empty, min_keypoints, proposal_files)
        return _from_detectron2(names, *arguments, check_consistency=check_consistency)
    if filter_empty and len(kept) < len(records):
        logger.info(
            "Removed %d images with no usable annotations. %d images left.",
            *(len(records) - len(kept), len(kept)),
        )
    if filter_empty:
        records = records.select(kept)
    if check_consistency and MetadataCatalog.get(names[0]).get("thing_classes") is not None:
        check_metadata_consistency("thing_classes", names)
        log_class_histogram(names[0], records, MetadataCatalog.get(names[0]).thing_classes)
    return records


def _from_detectron2(names: list[str], *arguments, check_consistency: bool) -> list[dict]:
    """Call detectron2's function; its table of classes is that of log_class_histogram."""
    records = get_detection_dataset_dicts(names, *arguments, check_consistency=False)
    class_names = MetadataCatalog.get(names[0]).get("thing_classes")
    has_classes = isinstance(records, list) and class_names is not None
    if check_consistency and has_classes and "annotations" in records[0]:
        check_metadata_consistency("thing_classes", names)
        log_class_histogram(names[0], records, class_names)
    return records


def select_images(
    records: Sequence[dict], image_ids: Container[int] | np.ndarray
) -> Sequence[dict]:
    """Return the dataset dicts of some images, in their order."""
    if isinstance(records, DatasetRecords):
        return records.select(np.flatnonzero(np.isin(records.image_ids, list(image_ids))))
    return [record for record in records if record["image_id"] in image_ids]
