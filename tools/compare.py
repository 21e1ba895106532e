#!/usr/bin/env python3
"""Train the rows of a comparison with several seeds each, and set them side by side.

The same command goes on after it was stopped, and trains what was added to the description.
"""

import argparse
import logging
import os
import sys

from tabulate import tabulate

from apa_det.experiments import Plan, gather, read_plan, run_all, write_figure, write_tables


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "description", nargs="?", metavar="YAML", help="what to compare: see configs/Comparison"
    )
    result.add_argument("--output", required=True, metavar="DIR", help="folder of the comparison")
    result.add_argument(
        "--configs", nargs="+", default=[], metavar="YAML", help="config files, each a row"
    )
    result.add_argument(
        "--seeds", nargs="+", type=int, default=[], metavar="N", help="default: the description's"
    )
    result.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="runs at the same time, whose times are then less exact (default 1)",
    )
    result.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default 1000)"
    )
    result.add_argument("--dry-run", action="store_true", help="list the runs, and train nothing")
    result.add_argument("--report-only", action="store_true", help="train nothing more")
    result.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="overrides for all rows; the last argument",
    )
    return result


def list_runs(plan: Plan) -> str:
    lines, total = [], 0
    for run in plan.runs:
        solver = run.cfg.SOLVER
        pictures = 0 if run.is_done else solver.MAX_ITER * solver.IMS_PER_BATCH
        total += pictures
        state = "done" if run.is_done else "goes on" if run.is_begun else "to do"
        lines.append([run.row, run.seed, state, solver.MAX_ITER, f"{pictures:,}"])
    headers = ["row", "seed", "state", "iterations", "pictures to train on"]
    align = ("left", "right", "left", "right", "right")
    return f"{tabulate(lines, headers, colalign=align)}\n{total:,} pictures in all, at most."


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.jobs < 1 or args.resamples < 1:
        parser().error("--jobs and --resamples are at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        plan = read_plan(
            args.output, args.description, args.configs, seeds=args.seeds, opts=args.opts
        )
        plan.check()
        if args.dry_run:
            print(list_runs(plan))
            return 0
        failed = [] if args.report_only else run_all(plan, args.jobs)
        results = gather(plan, args.resamples)
        print(f"\n{write_tables(results, args.output)}")
        write_figure(results, args.output)
    except (ImportError, OSError, ValueError) as error:
        print(f"{os.path.basename(sys.argv[0])}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"In {args.output}: table.md, comparison.png, results.csv, results.json, and the runs.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
