#!/usr/bin/env python3
"""Which distribution goes into the gates, activations and class scores of a checkpoint.

Takes the config of tools/train_net.py or tools/lazyconfig_train_net.py, with overrides after the
flags, and writes figures and a table. With --metrics, draws λ and κ over a training instead.
"""

import argparse
import os
import sys
from pathlib import Path

from apa_det.analysis import Analysis, draw_course, read_course, write_analysis
from apa_det.engine import analyze_checkpoint, analyze_lazy_checkpoint, setup, setup_lazy


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: tools/analyze_activations.py --config-file CONFIG.yaml "
        "MODEL.WEIGHTS output/model_final.pth",
    )
    result.add_argument("--config-file", default="", metavar="FILE", help="a yaml or a .py file")
    result.add_argument(
        "--num-images",
        type=int,
        default=100,
        metavar="N",
        help="pictures of the test set to look at, rare categories among them (default 100)",
    )
    result.add_argument(
        "--output", default="output/analysis", metavar="DIR", help="default: output/analysis"
    )
    result.add_argument(
        "--metrics",
        metavar="FILE",
        help="the metrics.json of a training: draw λ and κ over its course, and nothing else",
    )
    result.add_argument("opts", nargs=argparse.REMAINDER, help="overrides of the config")
    return result


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.eval_only, args.resume = True, False
    if args.num_images < 1:
        parser().error("--num-images is at least 1")
    try:
        if args.metrics:
            written = [Path(args.output) / "apa_parameters.png"]
            course = read_course(args.metrics)
            written[0].parent.mkdir(parents=True, exist_ok=True)
            draw_course(course, written[0])
        else:
            analysis = analyze(args)
            written = write_analysis(analysis, args.output)
            print(f"\n{analysis.table()}\n")
    except (ImportError, OSError, ValueError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 2
    print(f"Written: {', '.join(map(str, written))}")
    return 0


def analyze(args: argparse.Namespace) -> Analysis:
    if args.config_file.endswith(".py"):
        args.opts = [*args.opts, f"train.output_dir={args.output}"]
        return analyze_lazy_checkpoint(setup_lazy(args), args.num_images)
    args.opts = [*args.opts, "OUTPUT_DIR", args.output]
    return analyze_checkpoint(setup(args), args.num_images)


if __name__ == "__main__":
    sys.exit(main())
