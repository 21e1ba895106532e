"""Backbones as torch.export's programs."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Backbone", "export_backbone"]


class Backbone(nn.Module):
    """The feature maps of pictures; see :mod:`apa_det.export`.

    Args:
        model: a detector of detectron2 in evaluation mode.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        # A level of the FPN above the last stage has half its size, rounded up: odd and even sizes
        # would be two cases to torch.export.
        self.step = 2 * max(model.backbone.size_divisibility, 1)
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Args: images of shape (N, C, H, W). Returns: the maps by name, each (N, C', H', W')."""
        return self.backbone((images - self.pixel_mean) / self.pixel_std)

    def batch(self, image: Tensor) -> Tensor:
        """Args: image of shape (C, H, W). Returns: a batch of it, padded to a size it takes."""
        image, step = image.to(self.pixel_mean.device), self.step
        return F.pad(image, (0, -image.shape[2] % step, 0, -image.shape[1] % step))[None]


def export_backbone(
    model: nn.Module, image: Tensor, *, dynamic: bool = True
) -> torch.export.ExportedProgram:
    """A detector's backbone as a program of :func:`torch.export.export`.

    Args:
        model: a detector of detectron2 in evaluation mode; it is left as it is.
        image: shape (C, H, W), float32.
        dynamic: whether it takes any number of pictures of any size, or only one of that of
            ``image``.

    Returns:
        The program, of images (N, C, H, W) to a dict of feature maps. H and W are multiples of
        twice the backbone's ``size_divisibility``, at least two of them where ``dynamic``.

    Raises:
        ValueError: an image too small for ``dynamic``.
    """
    backbone = Backbone(model).eval()
    images, shapes = backbone.batch(image), None
    if dynamic:
        step = backbone.step
        if min(images.shape[2:]) < 2 * step:
            raise ValueError(f"For any size, export with a picture of more than {step} pixels.")
        height, width = (step * torch.export.Dim(name, min=2) for name in ("rows", "columns"))
        shapes = ({0: torch.export.Dim("pictures"), 2: height, 3: width},)
        images = images.repeat(2, 1, 1, 1)
    with torch.no_grad():
        return torch.export.export(backbone, (images,), dynamic_shapes=shapes)
