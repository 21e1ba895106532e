#!/usr/bin/env python3
"""Train and evaluate detectors that a LazyConfig describes, with the flags of detectron2's own.

Overrides are written key=value, as in train.max_iter=1000. Without CUDA, --num-gpus is the number
of processes on the CPU.
"""

from detectron2.engine import default_argument_parser

from apa_det.engine import evaluate_lazy, run, setup_lazy, train_lazy


def main(args):
    cfg = setup_lazy(args)
    return (evaluate_lazy if args.eval_only else train_lazy)(cfg, resume=args.resume)


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    print("Command Line Args:", args)
    run(main, args)
