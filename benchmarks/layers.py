"""The bottleneck block and CARAFE against the layers they replace, forward and backward."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from apa_det.layers import CARAFE, EvalBatchNorm2d, SEGate
from apa_det.modeling import APABottleneckBlock

from .common import DTYPES, ForwardBackward, add_common_arguments, measure, memory_method, report


class SigmoidGate(nn.Sequential):
    """:class:`apa_det.layers.SEGate` with a sigmoid, in layers of torch."""

    def __init__(self, num_channels: int, reduction: int = 16, dropout: float = 0.1):
        hidden = max(num_channels // reduction, 1)
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(num_channels),
            nn.Linear(num_channels, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, num_channels, bias=False),
            nn.Dropout(dropout),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)[:, :, None, None]


class SEBottleneckBlock(BottleneckBlock):
    """detectron2's block with a sigmoid gate before the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs):
        super().__init__(in_channels, out_channels, **kwargs)
        self.gate = SigmoidGate(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out))
        out = self.gate(self.conv3(out))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


def add_block_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", type=int, nargs=4, default=[2, 256, 200, 272])
    add_common_arguments(parser)
    parser.set_defaults(run=benchmark_block)


def benchmark_block(args: argparse.Namespace) -> None:
    channels, dtype = args.shape[1], DTYPES[args.dtype]
    x = torch.randn(args.shape, dtype=dtype, device=args.device, requires_grad=True)
    grad = torch.randn_like(x)
    sizes = {"bottleneck_channels": channels // 4, "norm": EvalBatchNorm2d}
    ours = partial(APABottleneckBlock, activation="aglu", gate="se")
    sparse = partial(SEGate, top_share=0.25)
    blocks = {
        "ReLU, sigmoid gate (detectron2)": SEBottleneckBlock,
        "ReLU, no gate (detectron2)": BottleneckBlock,
        "AGLU, APA gate": ours,
        "AGLU, APA gate, not fused": partial(ours, fuse=False),
        "AGLU, APA gate, 1/4 of the channels": partial(ours, gate=sparse),
        "AGLU, no gate": partial(ours, gate=None),
    }

    def forward_backward(block: nn.Module) -> ForwardBackward:
        def forward() -> Tensor:
            with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
                return block(x).to(dtype)

        return ForwardBackward(forward, [x, *block.parameters()], grad)

    runs = {
        name: forward_backward(block(channels, channels, **sizes).to(args.device))
        for name, block in blocks.items()
    }
    title = f"Bottleneck block, forward and backward of {tuple(x.shape)} {args.dtype}"
    report(title, measure(runs, args), list(runs)[:2], args, memory_method(args.device))


def add_carafe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rois", type=int, default=128)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--size", type=int, default=14)
    add_common_arguments(parser, dtype=False)
    parser.set_defaults(run=benchmark_carafe)


def unfolded(module: CARAFE, x: Tensor) -> Tensor:
    """Compute CARAFE with unfolded neighborhoods, as in the paper, and autograd."""
    n, c, h, w = x.shape
    s, k = module.scale, module.kernel_size
    logits = module.content_encoder(module.channel_compressor(x))
    kernels = F.pixel_shuffle(logits, s).softmax(dim=1).view(n, k * k, h, s, w, s)
    neighborhoods = F.unfold(x, k, padding=k // 2).view(n, c, k * k, h, w)
    out = torch.einsum("nckhw,nkhswt->nchswt", neighborhoods, kernels)
    return out.reshape(n, c, h * s, w * s)


def benchmark_carafe(args: argparse.Namespace) -> None:
    channels, size, device = args.channels, args.size, args.device
    x = torch.randn(args.rois, channels, size, size, requires_grad=True, device=device)
    grad = torch.randn(args.rois, channels, 2 * size, 2 * size, device=device)
    deconv = nn.Sequential(nn.ConvTranspose2d(channels, channels, 2, 2), nn.ReLU()).to(device)
    carafe = CARAFE(channels).to(device)

    def forward_backward(function: Callable, module: nn.Module) -> ForwardBackward:
        return ForwardBackward(partial(function, x), [x, *module.parameters()], grad)

    runs = {
        "deconvolution": forward_backward(deconv, deconv),
        "CARAFE": forward_backward(carafe, carafe),
        "CARAFE, unfolded": forward_backward(partial(unfolded, carafe), carafe),
    }
    title = f"CARAFE, forward and backward of {tuple(x.shape)} float32, upsampled by 2"
    report(title, measure(runs, args), ["deconvolution"], args, memory_method(args.device))
