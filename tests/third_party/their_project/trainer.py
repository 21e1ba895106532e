"""A custom trainer: detectron2's DefaultTrainer with the evaluator and a hook of apa_det."""

import torch
from detectron2.engine import DefaultTrainer
from detectron2.solver import get_default_optimizer_params

from apa_det.engine import LambdaKappaWriter
from apa_det.evaluation import LongTailEvaluator


class TheirTrainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return LongTailEvaluator(dataset_name, output_dir=output_folder)

    @classmethod
    def build_optimizer(cls, cfg, model):
        slow = {"lr": cfg.SOLVER.BASE_LR * cfg.SOLVER.THEIR_KAPPA_LR_FACTOR, "weight_decay": 0.0}
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            overrides={"kappa_param": slow},
        )
        return torch.optim.AdamW(params, lr=cfg.SOLVER.BASE_LR)

    def build_hooks(self):
        *hooks, writer = super().build_hooks()
        return [*hooks, LambdaKappaWriter(self.model, period=2), writer]
