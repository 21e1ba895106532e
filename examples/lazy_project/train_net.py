"""A project with LazyConfigs and detectron2's SimpleTrainer: one line for apa_det, and its hook.

Run it after `make quickstart`, which writes the dataset:

    python examples/lazy_project/train_net.py --config-file examples/lazy_project/mask_rcnn.py
"""

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm

import apa_det
from apa_det.engine import LambdaKappaWriter


def test(cfg, model):
    loader, evaluator = instantiate([cfg.dataloader.test, cfg.dataloader.evaluator])
    return inference_on_dataset(model, loader, evaluator)


def train(cfg, model, resume):
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    results = {}
    built = [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.EvalHook(cfg.train.eval_period, lambda: results.update(test(cfg, model))),
    ]
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        built += [
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            LambdaKappaWriter(model, cfg.train.log_period),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period),
        ]
    trainer.register_hooks(built)
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return results


def main(args):
    cfg = LazyConfig.load(args.config_file)
    cfg = LazyConfig.apply_overrides(cfg, args.opts)
    default_setup(cfg, args)
    apa_det.setup(cfg)  # datasets, class names, log, and a warning about keys that do not act
    model = instantiate(cfg.model).to(cfg.train.device)
    if args.eval_only:
        DetectionCheckpointer(model).load(cfg.train.init_checkpoint)
        return test(cfg, model)
    return train(cfg, model, args.resume)


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
