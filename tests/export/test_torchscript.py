"""TorchScript export against the models; test_tool.py exports the published recipe."""

import pytest
import torch
import torchvision

from apa_det.export import Detector, compare, export_scripting, export_tracing
from apa_det.export.torchscript import nms_in_graph, without_trace_warnings


@pytest.mark.parametrize(
    "method, kind",
    [
        ("tracing", "quickstart"),
        ("tracing", "softmax"),
        ("tracing", "cascade"),
        ("tracing", "retinanet"),
        ("tracing", "injected"),
        ("scripting", "softmax"),
        ("scripting", "retinanet"),
        ("scripting", "injected"),
    ],
)
def test_same_detections(detectors, images, method, kind):
    model = detectors(kind)
    names = list(model.state_dict())
    scripted = export_tracing(model, images[0]) if method == "tracing" else export_scripting(model)
    assert not any(p.requires_grad for p in scripted.parameters())
    assert not model.training and list(model.state_dict()) == names
    for image in images:
        difference = compare(Detector(model)(image), scripted(image))
        assert difference.is_small and difference.compared >= 10, difference


def test_cascade_cannot_be_scripted(detectors):
    with pytest.raises(ValueError, match="Cascade R-CNN cannot be scripted: use tracing"):
        export_scripting(detectors("cascade"))


def test_nms_of_many_boxes():
    """For more than 1,000 boxes, torchvision runs NMS class by class, but not when it is traced."""

    def make(n):
        corners = torch.rand(n, 2) * 900
        boxes = torch.cat([corners, corners + 1 + torch.rand(n, 2) * 9], dim=1).repeat(2, 1)
        boxes[n:] += torch.rand(n, 4)
        return boxes, torch.rand(2 * n), torch.randint(1000, 1203, (n,)).repeat(2)

    def suppress(boxes, scores, classes):
        return torchvision.ops.boxes.batched_nms(boxes, scores, classes, 0.5)

    torch.manual_seed(0)
    few, many = make(10), make(3000)
    with without_trace_warnings():
        with nms_in_graph(torch.jit.script(torchvision.ops.batched_nms)):
            traced = torch.jit.trace(suppress, few)
        plain = torch.jit.trace(suppress, few)
    assert torch.equal(traced(*few), suppress(*few))
    assert torch.equal(traced(*many).sort()[0], suppress(*many).sort()[0])
    assert not torch.equal(plain(*many).sort()[0], suppress(*many).sort()[0])
