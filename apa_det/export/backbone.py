"""Export backbones with torch.export."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError


class Backbone(nn.Module):
    """Maps images to feature maps; see :mod:`apa_det.export`.

    Args:
        model: a detectron2 detector in evaluation mode.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        # FPN levels above the last stage halve its size, rounding up. torch.export would treat odd
        # and even sizes as different cases, so only even ones are allowed.
        self.step = 2 * max(model.backbone.size_divisibility, 1)
        self.register_buffer("pixel_mean", model.pixel_mean)
        self.register_buffer("pixel_std", model.pixel_std)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images, (N, C, H, W), to feature maps by name, (N, C', H', W')."""
        return self.backbone((images - self.pixel_mean) / self.pixel_std)

    def batch(self, image: Tensor) -> Tensor:
        """Return an image, (C, H, W), padded to a valid size, as a batch of one."""
        image, step = image.to(self.pixel_mean.device), self.step
        return F.pad(image, (0, -image.shape[2] % step, 0, -image.shape[1] % step))[None]


def export_backbone(
    model: nn.Module, image: Tensor, *, dynamic: bool = True
) -> torch.export.ExportedProgram:
    """Export a detector's backbone with :func:`torch.export.export`.

    Args:
        model: a detectron2 detector in evaluation mode; it is not modified.
        image: (C, H, W), float32.
        dynamic: accept any number of images of any size, not only one image of the size of
            ``image``.

    Returns:
        The program, which maps images (N, C, H, W) to a dict of feature maps. H and W must be
        multiples of twice the backbone's ``size_divisibility``; if ``dynamic``, at least two times
        that.

    Raises:
        UserError: the image is too small for ``dynamic``, or torch is older than 2.6, which cannot
            export activations without the operators of apa_det.
    """
    if not hasattr(torch.compiler, "is_exporting"):
        raise UserError(
            f"torch.export of a backbone needs torch >= 2.6, got {torch.__version__}: install a "
            "newer release, or export to TorchScript or ONNX."
        )
    backbone = Backbone(model).eval()
    images, shapes = backbone.batch(image), None
    if dynamic:
        step = backbone.step
        if min(images.shape[2:]) < 2 * step:
            raise UserError(
                f"To export for any image size, the sample image must be larger than {step} pixels "
                "on both sides."
            )
        height, width = (step * torch.export.Dim(name, min=2) for name in ("rows", "columns"))
        shapes = ({0: torch.export.Dim("images"), 2: height, 3: width},)
        images = images.repeat(2, 1, 1, 1)
    with torch.no_grad():
        return torch.export.export(backbone, (images,), dynamic_shapes=shapes)
