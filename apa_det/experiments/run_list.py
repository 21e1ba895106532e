"""List the runs of a comparison before they are trained."""

from tabulate import tabulate

from .plan import Plan


def list_runs(plan: Plan) -> str:
    """Return a table of the runs: their state, and the number of images they will train on."""
    rows, total = [], 0
    for run in plan.runs:
        num_images = 0 if run.is_done else run.num_iterations * run.job.batch_size
        total += num_images
        state = "done" if run.is_done else "to resume" if run.is_begun else "to do"
        rows.append([run.row, run.seed, state, run.num_iterations, f"{num_images:,}"])
    headers = ["row", "seed", "state", "iterations", "images to train on"]
    align = ("left", "right", "left", "right", "right")
    table = tabulate(rows, headers, colalign=align)
    return f"{table}\n{total:,} images in total, at most."
