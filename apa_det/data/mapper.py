"""The mapper from dataset dicts to training and test samples."""

import copy
import os

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T

from ..errors import MissingPackageError, UserError
from ..text import printable
from .image_files import read_image, size_mismatch
from .scale_jitter import FrameCrop, large_scale_jitter


class APADatasetMapper(DatasetMapper):
    """detectron2's DatasetMapper, for any image and any mask.

    Images are read by :func:`apa_det.data.image_files.read_image`. With ``instance_mask_format``
    "polygon", the masks of an image become bitmaps if one of them is RLE, or with large-scale
    jitter; losses accept both kinds in a batch. Otherwise polygons give the same samples as
    detectron2's mapper. Padding is never part of a mask.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        arguments = super().from_config(cfg, is_train)
        jitter = cfg.INPUT.get("LSJ")  # missing without add_apa_config
        if is_train and jitter and jitter.ENABLED:
            arguments["augmentations"] = [large_scale_jitter(jitter.SIZE, jitter.SCALE)]
            arguments["recompute_boxes"] = cfg.MODEL.MASK_ON
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """Return the sample of a dataset dict.

        Raises:
            MissingFileError: the image does not exist.
            UserError: the image cannot be read or resized, or has another size than annotated.
            MissingPackageError: polygons are cropped, and shapely is not installed.
        """
        sample = copy.deepcopy(dataset_dict)
        image = read_image(sample["file_name"], self.image_format)
        check_size(sample, image)
        labels = None
        if "sem_seg_file_name" in sample:  # labels, which are not to be divided by 257
            path = sample.pop("sem_seg_file_name")
            labels = detection_utils.read_image(path, "L").squeeze(2)
        inputs = T.AugInput(image, sem_seg=labels)
        transforms = augment(self.augmentations, inputs, sample["file_name"])
        size = inputs.image.shape[:2]
        pixels = np.require(inputs.image.transpose(2, 0, 1), requirements=("C", "W"))
        sample["image"] = torch.as_tensor(pixels)
        if labels is not None:
            sample["sem_seg"] = torch.as_tensor(inputs.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                sample, size, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            sample.pop("annotations", None)
        elif "annotations" in sample:
            self._transform_annotations(sample, transforms, size)
        return sample

    def _transform_annotations(
        self, dataset_dict: dict, transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        mapper = copy.copy(self)
        uncut = any(isinstance(transform, FrameCrop) for transform in transforms.transforms)
        if self.use_instance_mask and (uncut or has_rle(dataset_dict)):
            mapper.instance_mask_format = "bitmask"
        transforms = T.TransformList([_without_label(t) for t in transforms.transforms])
        if not instances(dataset_dict):  # which have no masks to compute boxes from
            mapper.recompute_boxes = False
        try:
            DatasetMapper._transform_annotations(mapper, dataset_dict, transforms, image_shape)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("shapely"):
                raise
            raise MissingPackageError(
                "Cropping polygons needs shapely: pip install shapely."
            ) from error


def augment(
    augmentations: T.AugmentationList, inputs: T.AugInput, name: str | os.PathLike
) -> T.TransformList:
    """Apply augmentations to an image, in place, and return the transforms.

    Raises:
        UserError: a side of the image would be resized to 0 pixels.
    """
    height, width = inputs.image.shape[:2]
    try:
        return augmentations(inputs)
    except ValueError as error:
        if "must be > 0" not in str(error):  # by Pillow
            raise
        raise UserError(
            f"The image {printable(name, 500)} of {width} x {height} pixels is too narrow: its "
            "shorter side would be resized to 0 pixels. Pad or remove it."
        ) from error


def instances(record: dict) -> list[dict]:
    """Return the annotations of a dataset dict that are trained: all but crowds."""
    return [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]


def has_rle(record: dict) -> bool:
    """Return whether an instance of a dataset dict has an RLE mask."""
    return any(isinstance(a.get("segmentation"), dict) for a in instances(record))


def _without_label(transform: T.Transform) -> T.Transform:
    """Let padding be 0 in masks, not the label with which semantic labels are padded."""
    if isinstance(transform, T.PadTransform):
        transform = copy.copy(transform)
        transform.seg_pad_value = 0
    return transform


def check_size(record: dict, image: np.ndarray) -> None:
    """Raise a UserError if an image has another size than its dataset dict."""
    try:
        detection_utils.check_image_size(record, image)
    except detection_utils.SizeMismatchError as error:
        size = image.shape[1], image.shape[0]
        text = size_mismatch(record["file_name"], size, (record["width"], record["height"]))
        raise UserError(
            f"{text}: fix its width and height. tools/prepare_dataset.py check lists all such "
            "images."
        ) from error
