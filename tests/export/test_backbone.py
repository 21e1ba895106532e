"""torch.export of backbones, and torch.compile of blocks."""

import pytest
import torch

from apa_det.errors import UserError
from apa_det.export import Backbone, compare_features, export_backbone
from apa_det.modeling import APABasicBlock, APABottleneckBlock

from ..conftest import CAN_EXPORT, needs_export


@needs_export
def test_exported_backbone(detectors, images, tmp_path):
    model = detectors("quickstart")
    program = export_backbone(model, images[0])
    assert not any("apa_det" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, tmp_path / "backbone.pt2")
    exported = torch.export.load(tmp_path / "backbone.pt2").module()
    backbone = Backbone(model)
    batches = [backbone.batch(images[0]), torch.rand(3, 3, 192, 320) * 255]
    batches.append(torch.rand(1, 3, 320, 128) * 255)
    with torch.no_grad():
        for batch in batches:
            assert compare_features(backbone(batch), exported(batch)) < 1e-5


@pytest.mark.skipif(CAN_EXPORT, reason="this torch exports")
def test_old_torch(detectors, images):
    with pytest.raises(UserError, match="needs torch >= 2.6, got "):
        export_backbone(detectors("quickstart"), images[0])


@needs_export
def test_small_image(detectors, images):
    with pytest.raises(ValueError, match="must be larger than 64 pixels"):
        export_backbone(detectors("quickstart"), images[0][:, :64])


def test_compare_features():
    expected = {"p2": torch.tensor([4.0, 1]), "p3": torch.tensor([1.0])}
    actual = {"p2": torch.tensor([4.0, 2]), "p3": torch.tensor([0.9])}
    assert compare_features(expected, actual) == 0.25


@pytest.mark.parametrize("gate", ["se", "cbam"])
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_blocks_compile_without_a_graph_break(block, fuse, gate):
    args = {"norm": "EvalBN", "activation": "aglu", "gate": gate, "fuse": fuse}
    if block == "basic":
        block = APABasicBlock(8, 8, **args)
    else:
        block = APABottleneckBlock(8, 8, bottleneck_channels=4, **args)
    block.eval()
    x = torch.randn(2, 8, 6, 5)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (block, compiled):
        block.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad for p in block.parameters()])
    torch.testing.assert_close(compiled(x), block(x))
    torch.testing.assert_close(*gradients)
