"""CARAFE against plain loops, and its gradients against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from apa_det.layers import CARAFE
from apa_det.layers.carafe import carafe

from ..conftest import CAN_EXPORT


def by_loops(x, kernels, scale):
    n, c, h, w = x.shape
    k = int(kernels.shape[1] ** 0.5)
    out = x.new_zeros(n, c, h * scale, w * scale)
    for y in range(h * scale):
        for z in range(w * scale):
            for i in range(k):
                for j in range(k):
                    row, column = y // scale + i - k // 2, z // scale + j - k // 2
                    if 0 <= row < h and 0 <= column < w:
                        weight = kernels[:, i * k + j, y, z]
                        out[:, :, y, z] += x[:, :, row, column] * weight[:, None]
    return out


def make(n=2, c=3, h=4, w=5, k=5, scale=2, dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w, dtype=dtype)
    return x, torch.randn(n, k * k, h * scale, w * scale, dtype=dtype)


@pytest.mark.parametrize("w", [1, 5, 16, 17, 35])
@pytest.mark.parametrize("k,scale", [(5, 2), (3, 3), (1, 1), (7, 2)])
def test_loops(w, k, scale):
    x, kernels = make(h=3, w=w, k=k, scale=scale)
    expected = by_loops(x, kernels, scale)
    torch.testing.assert_close(carafe(x, kernels, scale), expected)
    x.requires_grad_()
    torch.testing.assert_close(carafe(x, kernels, scale), expected)


@pytest.mark.parametrize("w,k,scale", [(4, 5, 2), (18, 3, 1), (2, 3, 3)])
def test_gradients(w, k, scale):
    x, kernels = make(n=1, c=2, h=2, w=w, k=k, scale=scale)
    x, kernels = x.requires_grad_(), kernels.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, kernels: carafe(x, kernels, scale), (x, kernels))


def test_any_layout():
    x, kernels = make(h=6, w=6)
    expected = carafe(x, kernels)
    for x_, kernels_ in [
        (x.to(memory_format=torch.channels_last), kernels),
        (x.mT.contiguous().mT, kernels.mT.contiguous().mT),
        (x.repeat(1, 2, 1, 1)[:, :3], kernels.repeat(1, 2, 1, 1)[:, :25]),
    ]:
        x_.requires_grad_()
        out = carafe(x_, kernels_)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        assert x_.grad.shape == x.shape


@pytest.mark.parametrize("shape", [(0, 3, 14, 14), (2, 0, 4, 4)])
def test_empty(shape):
    n, _, h, w = shape
    x = torch.randn(shape, requires_grad=True)
    kernels = torch.randn(n, 25, 2 * h, 2 * w, requires_grad=True)
    out = carafe(x, kernels)
    assert out.shape == (n, shape[1], 2 * h, 2 * w)
    out.sum().backward()
    assert x.grad.shape == x.shape


def test_module_without_images():
    module = CARAFE(3)
    module(torch.randn(0, 3, 14, 14)).sum().backward()
    assert all((p.grad == 0).all() for p in module.parameters())


def test_module_matches_paper():
    torch.manual_seed(0)
    module = CARAFE(8).double()
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "channel_compressor.weight": (64, 8, 1, 1),
        "channel_compressor.bias": (64,),
        "content_encoder.weight": (100, 64, 3, 3),
        "content_encoder.bias": (100,),
    }
    torch.nn.init.normal_(module.content_encoder.weight)
    x = torch.randn(1, 8, 4, 3, dtype=torch.float64)
    p = dict(module.named_parameters())
    logits = F.conv2d(x, p["channel_compressor.weight"], p["channel_compressor.bias"])
    logits = F.conv2d(logits, p["content_encoder.weight"], p["content_encoder.bias"], padding=1)
    kernels = torch.zeros(1, 25, 8, 6, dtype=torch.float64)
    for y in range(8):
        for z in range(6):
            channels = torch.arange(25) * 4 + (y % 2) * 2 + z % 2
            kernels[:, :, y, z] = logits[:, channels, y // 2, z // 2].softmax(dim=1)
    torch.testing.assert_close(module(x), by_loops(x, kernels, 2))


def test_starts_as_a_mean():
    """The initial kernels are nearly uniform: constants are preserved away from the border."""
    out = CARAFE(4)(torch.ones(1, 4, 8, 8))
    torch.testing.assert_close(out[..., 4:-4, 4:-4], torch.ones(1, 4, 8, 8), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    torch.manual_seed(0)
    module, x = CARAFE(8), torch.randn(2, 8, 6, 6)
    expected = module(x)
    with torch.autocast("cpu", dtype=dtype):
        x_ = x.to(dtype).requires_grad_()
        out = module(x_)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    out.float().square().sum().backward()
    assert x_.grad.dtype == dtype and module.content_encoder.weight.grad.isfinite().all()


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("shape", [(4, 256, 14, 14), (1, 256, 20, 200)])
def test_memory(shape):
    """No temporary is larger than the output, and only the inputs are saved."""
    n, _, h, w = shape
    x = torch.randn(shape, requires_grad=True)
    kernels = torch.randn(n, 25, 2 * h, 2 * w).softmax(dim=1).requires_grad_()
    saved = []
    with LargestTensor() as largest:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            out = carafe(x, kernels)
        out.backward(torch.ones_like(out))
    assert largest.numel <= out.numel()
    assert {t.data_ptr() for t in saved} <= {x.data_ptr(), kernels.data_ptr()}


def test_trace_and_export():
    module = CARAFE(4).eval()
    x, other = torch.randn(2, 4, 14, 14), torch.randn(5, 4, 14, 14)
    with torch.no_grad():
        traced = torch.jit.trace(module, x)
        torch.testing.assert_close(traced(other), module(other))
        if CAN_EXPORT:
            batch = torch.export.Dim("batch", min=2)
            exported = torch.export.export(module, (x,), dynamic_shapes=({0: batch},)).module()
            torch.testing.assert_close(exported(other), module(other))


@pytest.mark.parametrize("shape", [(2, 24, 8, 10), (2, 16, 8, 10), (2, 25, 8, 12), (1, 25, 8, 10)])
def test_errors(shape):
    with pytest.raises(ValueError, match="kernels must have shape .* with odd k"):
        carafe(torch.zeros(2, 3, 4, 5), torch.zeros(shape))
