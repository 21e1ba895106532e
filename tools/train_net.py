#!/usr/bin/env python3
"""Train and evaluate detectors, with the flags of detectron2's own train_net.py.

Without CUDA, --num-gpus is the number of processes on the CPU.
"""

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from apa_det.engine import Trainer, last_stage, load_for_evaluation, run, setup, train


def main(args):
    cfg = setup(args)
    if args.eval_only:
        cfg = last_stage(cfg) if args.resume else cfg
        model = Trainer.build_model(cfg)
        load_for_evaluation(cfg, model, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    return train(cfg, resume=args.resume)


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    print("Command Line Args:", args)
    run(main, args)
