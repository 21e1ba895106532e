"""CARAFE: upsampling with kernels predicted from the features.

"CARAFE: Content-Aware ReAssembly of FEatures" (Wang et al., ICCV 2019).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Number of columns per block. Each output row of a block is one matrix product: the kernels, as a
# band matrix, times the k surrounding input rows. The band matrix grows quadratically with _BLOCK.
_BLOCK = 16


def carafe(x: Tensor, kernels: Tensor, scale: int = 2) -> Tensor:
    """Reassemble features: each output pixel is a weighted sum of k × k input pixels.

    They are centered on the pixel of nearest-neighbor upsampling; the input is zero-padded.
    Neighborhoods are not unfolded: with 100 channels or more, no temporary is larger than the
    output. Only the inputs are saved for the backward pass.

    Args:
        x: shape (N, C, H, W).
        kernels: shape (N, k², scale·H, scale·W), k odd. The k² weights are in row-major order.
        scale: upsampling factor.

    Returns:
        Shape (N, C, scale·H, scale·W), dtype of ``x``, channels-last layout.

    Raises:
        ValueError: if ``kernels`` has another shape.
    """
    n, _, h, w = x.shape
    k = math.isqrt(kernels.shape[1])
    if k % 2 == 0 or kernels.shape != (n, k * k, scale * h, scale * w):
        raise ValueError(
            f"kernels must have shape ({n}, k², {scale * h}, {scale * w}) with odd k for an input "
            f"of shape {tuple(x.shape)} and scale {scale}; got {tuple(kernels.shape)}."
        )
    kernels = kernels.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and (x.requires_grad or kernels.requires_grad):
            return _CARAFEFunction.apply(x, kernels, k, scale)
        return _reassemble(x, kernels, k, scale)


def _reassemble(x: Tensor, kernels: Tensor, k: int, scale: int, block: int = _BLOCK) -> Tensor:
    """Compute the forward pass; can be traced, scripted and exported."""
    n, c, h, w = x.shape
    rows = _padded_rows(x, k)
    blocks = []
    for start in range(0, w, block):
        stop = min(start + block, w)
        band = _to_band(kernels[..., start * scale : stop * scale], k, scale)
        inputs = rows[:, :, start : stop + k - 1]
        lines = [band[y] @ inputs[:, y : y + k].flatten(1, 2) for y in range(h)]
        blocks.append(torch.stack(lines, dim=1).view(n, h * scale, (stop - start) * scale, c))
    out = torch.cat(blocks, dim=2) if len(blocks) > 1 else blocks[0]
    return out.permute(0, 3, 1, 2)


class _CARAFEFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kernels, k, scale):
        ctx.save_for_backward(x, kernels)
        ctx.k, ctx.scale = k, scale
        return _reassemble(x, kernels, k, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, kernels), k, scale = ctx.saved_tensors, ctx.k, ctx.scale
        n, c, h, w = x.shape
        rows = _padded_rows(x, k)
        grad = grad.permute(0, 2, 3, 1).reshape(n, h, scale, w * scale, c)
        grad_rows = torch.zeros_like(rows)
        grad_kernels = torch.empty_like(kernels)
        for block in _blocks(w):
            band = _to_band(kernels[..., _scaled(block, scale)], k, scale)
            grad_band = torch.empty_like(band)
            for y in range(h):
                window = (slice(None), slice(y, y + k), _widened(block, k))
                grad_out = grad[:, y, :, _scaled(block, scale)].flatten(1, 2)
                grad_band[y] = grad_out @ rows[window].flatten(1, 2).mT
                grad_in = grad_rows[window]
                grad_in += (band[y].mT @ grad_out).view(grad_in.shape)
            grad_kernels[..., _scaled(block, scale)] = _from_band(grad_band, k, scale)
        r = k // 2
        return grad_rows[:, r : r + h, r : r + w].permute(0, 3, 1, 2), grad_kernels, None, None


def _padded_rows(x: Tensor, k: int) -> Tensor:
    """Zero-pad (N, C, H, W) to (N, H + k − 1, W + k − 1, C)."""
    r = k // 2
    return F.pad(x, [r, r, r, r]).permute(0, 2, 3, 1).contiguous()


def _blocks(w: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, w)) for start in range(0, w, _BLOCK)]


def _scaled(block: slice, scale: int) -> slice:
    """Return the output columns of a block."""
    return slice(block.start * scale, block.stop * scale)


def _widened(block: slice, k: int) -> slice:
    """Return the columns of the padded input that a block depends on."""
    return slice(block.start, block.stop + k - 1)


def _to_band(kernels: Tensor, k: int, scale: int) -> Tensor:
    """Convert kernels (N, k², scale·H, scale·W) to bands (H, N, scale·W·scale, k·(W + k − 1)).

    The product of one of the H matrices and k padded input rows is ``scale`` output rows.
    """
    n, _, h, w = kernels.shape
    h, w = h // scale, w // scale
    band = kernels.reshape(n, k, k, h, scale, w, scale).permute(3, 0, 4, 6, 1, 5, 2)
    # Row i of (W, k) must shift right by i in (W, W + k − 1). Padding each row by W, flattening and
    # reshaping to rows of W + k − 1 does this.
    band = F.pad(band, [0, w]).flatten(-2)[..., : w * (w + k - 1)].unflatten(-1, (w, w + k - 1))
    return band.permute(0, 1, 2, 5, 3, 4, 6).reshape(h, n, scale * w * scale, k * (w + k - 1))


def _from_band(band: Tensor, k: int, scale: int) -> Tensor:
    """Invert :func:`_to_band`: collect the diagonals of bands into kernels."""
    h, n = band.shape[:2]
    w = band.shape[2] // scale**2
    band = band.view(h, n, scale, w, scale, k, w + k - 1).permute(0, 1, 2, 4, 5, 3, 6)
    band = F.pad(band.flatten(-2), (0, w)).unflatten(-1, (w, w + k))[..., :k]
    return band.permute(1, 4, 6, 0, 2, 5, 3).reshape(n, k * k, h * scale, w * scale)


class CARAFE(nn.Module):
    """:func:`carafe`, with kernels predicted by a 1×1 and a 3×3 convolution and a softmax.

    Args:
        num_channels: number of input and output channels.
        scale: upsampling factor.
        kernel_size: odd size k of the reassembled neighborhood.
        compressed_channels: number of channels between the two convolutions.
        encoder_size: odd kernel size of the second convolution.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        scale: int = 2,
        kernel_size: int = 5,
        compressed_channels: int = 64,
        encoder_size: int = 3,
    ):
        super().__init__()
        self.scale = scale
        self.kernel_size = kernel_size
        self.channel_compressor = nn.Conv2d(num_channels, compressed_channels, 1)
        self.content_encoder = nn.Conv2d(
            compressed_channels, (kernel_size * scale) ** 2, encoder_size, padding=encoder_size // 2
        )
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        nn.init.zeros_(self.channel_compressor.bias)
        nn.init.zeros_(self.content_encoder.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, scale·H, scale·W)."""
        n, _, h, w = x.shape
        s, k2 = self.scale, self.kernel_size * self.kernel_size
        logits = self.content_encoder(self.channel_compressor(x))
        # Equal to F.pixel_shuffle, whose backward pass fails for empty batches.
        logits = logits.view(n, k2, s, s, h, w).permute(0, 1, 4, 2, 5, 3)
        kernels = logits.reshape(n, k2, s * h, s * w).softmax(dim=1)
        if torch.jit.is_scripting():
            return _reassemble(x, kernels, self.kernel_size, s)
        return carafe(x, kernels, s)
