"""Train configs with several seeds each, and compare them in one table.

Run the same command again to continue: finished runs are kept, new rows are trained.
"""

import argparse

from .flags import add_config_file, add_overrides, command_parser, positive_int


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    result = command_parser(prog, __doc__)
    result.add_argument(
        "description", nargs="?", metavar="YAML", help="the comparison: see configs/Comparison"
    )
    result.add_argument("--output", required=True, metavar="DIR", help="folder of the comparison")
    add_config_file(result, "; each is one more row", nargs="+", default=[])
    result.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="default: those of the comparison",
    )
    result.add_argument(
        "--jobs",
        type=positive_int,
        default=1,
        metavar="N",
        help="runs at the same time; their iteration times are then less exact (default 1)",
    )
    result.add_argument(
        "--resamples",
        type=positive_int,
        default=1000,
        metavar="N",
        help="bootstrap resamples (default 1000)",
    )
    result.add_argument("--dry-run", action="store_true", help="list the runs and train nothing")
    result.add_argument(
        "--report-only", action="store_true", help="write the table without training more"
    )
    add_overrides(result)
    return result


def run(args: argparse.Namespace) -> int:
    from apa_det.experiments import (
        discard_damaged,
        gather,
        list_runs,
        read_plan,
        run_all,
        write_figure,
        write_tables,
    )
    from apa_det.utils.writable import require_writable_folder

    require_writable_folder(args.output)
    plan = read_plan(
        args.output,
        args.description,
        args.config_file,
        seeds=args.seeds,
        opts=args.opts,
        imports=args.imports,
    )
    if not (args.dry_run or args.report_only):
        discard_damaged(plan)
    plan.check()
    if args.dry_run:
        print(list_runs(plan))
        return 0
    failed = [] if args.report_only else run_all(plan, args.jobs)
    results = gather(plan, args.resamples)
    print(f"\n{write_tables(results, args.output)}")
    write_figure(results, args.output)
    print(f"In {args.output}: table.md, comparison.png, results.csv, results.json, and the runs.")
    return 1 if failed else 0
