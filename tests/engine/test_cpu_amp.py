"""Mixed precision on the CPU."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from apa_det.engine.cpu_amp import CPUAMPTrainer


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, data):
        out = self.fc(data)
        self.dtype = out.dtype
        return {"loss_a": out.float().square().mean(), "loss_b": out.float().mean()}


def test_step():
    """The forward pass runs in bfloat16; the weights stay in float32 and take the whole step."""
    torch.manual_seed(0)
    model, data = Square(), torch.randn(3, 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = CPUAMPTrainer(model, [data], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.iter = 0
    with EventStorage() as storage:
        trainer.run_step()
        assert storage.latest()["total_loss"][0] == pytest.approx(
            storage.latest()["loss_a"][0] + storage.latest()["loss_b"][0]
        )
    assert model.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        torch.testing.assert_close(parameter, before[name] - 0.1 * parameter.grad)
