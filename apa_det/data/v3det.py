"""V3Det, 13,204 classes ("V3Det: Vast Vocabulary Visual Detection Dataset", ICCV 2023)."""

import json
import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathManager

from ..errors import MissingFileError, UserError

_DOWNLOAD = (
    "Download V3Det (github.com/V3Det/V3Det) to this path, or set the environment variable "
    "DETECTRON2_DATASETS to the folder that contains v3det/."
)


def register_v3det(root: str) -> None:
    """Register v3det_train, v3det_val and v3det_train_sam. Their files are read on first use.

    Args:
        root: folder of v3det/, which contains the images and, in COCO format,
            annotations/v3det_2023_v1_{train,val,train_sam}.json; the last has the masks of SAM.
    """
    image_root = os.path.join(root, "v3det")
    for split in ("train", "val", "train_sam"):
        name = f"v3det_{split}"
        json_file = os.path.join(image_root, "annotations", f"v3det_2023_v1_{split}.json")
        DatasetCatalog.register(name, lambda name=name: _load(name))
        MetadataCatalog.get(name).set(
            json_file=json_file, image_root=image_root, evaluator_type="v3det"
        )


def _load(name: str) -> list[dict]:
    metadata = MetadataCatalog.get(name)
    if not PathManager.isfile(metadata.json_file):
        raise MissingFileError(
            f'The dataset "{name}" needs {metadata.json_file}, which does not exist. {_DOWNLOAD}'
        )
    try:
        dataset_dicts = load_coco_json(metadata.json_file, metadata.image_root, name)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{metadata.json_file} is cut off or not JSON ({error}). Download it again."
        ) from error
    if dataset_dicts and not PathManager.isfile(dataset_dicts[0]["file_name"]):
        first = dataset_dicts[0]["file_name"]
        raise MissingFileError(f'{first}, the first image of "{name}", does not exist. {_DOWNLOAD}')
    return dataset_dicts


register_v3det(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
