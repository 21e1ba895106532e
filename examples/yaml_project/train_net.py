"""A project with detectron2's DefaultTrainer: what it takes to honor the keys of apa_det.

Run it after `make quickstart`, which writes the dataset:

    python examples/yaml_project/train_net.py --config-file examples/yaml_project/mask_rcnn.yaml
"""

import os

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm

import apa_det
from apa_det.data import build_train_loader
from apa_det.engine import LambdaKappaWriter
from apa_det.evaluation import LongTailEvaluator, evaluator_arguments


class Trainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        return apa_det.build_model(cfg)  # MODEL.APA.INJECT

    @classmethod
    def build_optimizer(cls, cfg, model):
        groups = apa_det.param_groups(cfg, model)  # MODEL.APA.WEIGHT_DECAY and LR_FACTOR
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW(groups))

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg, mapper=None)  # the samplers of apa_det

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        return LongTailEvaluator(dataset_name, output_dir=folder, **evaluator_arguments(cfg))

    def build_hooks(self):
        built = super().build_hooks()
        at = next((i for i, h in enumerate(built) if isinstance(h, hooks.PeriodicWriter)), None)
        if at is not None:  # in the main process
            built.insert(at, LambdaKappaWriter(self.model, self.cfg.MODEL.APA.LOG_PERIOD))
        return built


def setup(args):
    cfg = get_cfg()
    apa_det.add_apa_config(cfg)  # before or after the keys of the project
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    apa_det.setup(cfg)  # datasets, class names, log, and a warning about keys that do not act
    return cfg


def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    comm.synchronize()
    return results


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
