"""Large-scale jitter: a random scale, then a crop of fixed size, or padding to it."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T


class FrameCrop(T.CropTransform):
    """A crop that moves polygons and does not cut them: they are cut when they become bitmaps."""

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return [self.apply_coords(polygon) for polygon in polygons]


class FrameCropAndPad(T.FixedSizeCrop):
    """detectron2's ``FixedSizeCrop`` without shapely; :class:`APADatasetMapper` makes bitmaps."""

    def _get_crop(self, image: np.ndarray) -> FrameCrop:
        return FrameCrop(**vars(super()._get_crop(image)))


def large_scale_jitter(size: int = 1024, scale: Sequence[float] = (0.1, 2.0)) -> T.AugmentationList:
    """Return large-scale jitter: flip, resize, and crop or pad to a square.

    The longer side becomes ``size`` times a random scale ("Simple Copy-Paste is a Strong Data
    Augmentation Method for Instance Segmentation", Ghiasi et al., CVPR 2021, section 3). A larger
    image is cropped at random; a smaller one is padded with gray (128) at the right and bottom.

    Args:
        size: sides of the result, in pixels.
        scale: limits of the uniform random scale.
    """
    low, high = scale
    return T.AugmentationList(
        [
            T.RandomFlip(horizontal=True),
            T.ResizeScale(low, high, target_height=size, target_width=size),
            FrameCropAndPad(crop_size=(size, size)),
        ]
    )
