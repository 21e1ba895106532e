"""Show what goes into the gates, activations and class scores of a checkpoint.

Writes figures and a table. With --metrics, plots λ and κ over a training instead.
"""

import argparse
import os

from .flags import add_config_file, add_num_images, add_overrides, command_parser


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    source = result.add_mutually_exclusive_group(required=True)
    add_config_file(source, "; the checkpoint is that of the config")
    source.add_argument(
        "--metrics", metavar="FILE", help="the metrics.json of a training: plot its λ and κ"
    )
    add_num_images(result, 100, "test")
    result.add_argument(
        "--output",
        default="output/analysis",
        metavar="DIR",
        help="folder to write into (default %(default)s)",
    )
    add_overrides(result, trailing=True)
    return result


def run(args: argparse.Namespace) -> None:
    from apa_det.analysis import plot_parameter_history, read_parameter_history, write_analysis
    from apa_det.engine import overrides, setup_job
    from apa_det.engine.jobs import analyze_checkpoint
    from apa_det.utils.writable import require_writable_folder

    require_writable_folder(args.output)
    if args.metrics:
        history = read_parameter_history(args.metrics)
        os.makedirs(args.output, exist_ok=True)
        written = [os.path.join(args.output, "apa_parameters.png")]
        plot_parameter_history(history, written[0])
    else:
        args.eval_only, args.resume = True, False
        args.opts = [*args.opts, *overrides(args.config_file, {"output_dir": args.output})]
        analysis = analyze_checkpoint(setup_job(args), args.num_images)
        written = write_analysis(analysis, args.output)
        print(f"\n{analysis.table()}\n")
    print(f"Wrote {', '.join(map(str, written))}")
