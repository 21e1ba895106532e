"""Mixed precision on the CPU."""

import time

import torch
from detectron2.engine import SimpleTrainer

__all__ = ["CPUAMPTrainer"]


class CPUAMPTrainer(SimpleTrainer):
    """detectron2's AMPTrainer for the CPU: in bfloat16, whose range needs no loss scaling."""

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss_dict = self.model(data)
        self.optimizer.zero_grad()
        sum(loss_dict.values()).backward()
        self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()
