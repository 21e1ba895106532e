"""Train a small APA Mask R-CNN on a generated dataset.

It evaluates the model and draws its predictions, all in the current folder. The flags are those of
train. Without --resume it starts over, and replaces the checkpoints of the last time.
"""

import argparse
import os
import time

from . import train_detector

CONFIG = "Quickstart/mask_rcnn_R_18_FPN_APA.yaml"
DATASET = "datasets/quickstart"


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    return train_detector.parser(prog, __doc__)


def run(args: argparse.Namespace) -> None:
    from apa_det.engine import run as launch
    from apa_det.model_zoo import get_config_file

    args.config_file = args.config_file or get_config_file(CONFIG)
    launch(main, args)


def main(args: argparse.Namespace) -> None:
    """Run in each process of the job."""
    from detectron2.utils import comm

    from apa_det.data import generate_dataset
    from apa_det.engine import evaluate, setup_job, train
    from apa_det.engine.closing import best_model

    start = time.perf_counter()
    if comm.is_main_process() and not os.path.isfile(f"{DATASET}/val.json"):  # written last
        print(f"[1/2] Generating the dataset in {DATASET}")
        generate_dataset(DATASET)
    comm.synchronize()

    print("[2/2] Training and evaluating, about 4 minutes on two CPU cores")
    args.overwrite = not args.resume
    job = setup_job(args).saving_predictions()
    if args.eval_only:
        results = evaluate(job, resume=args.resume)
    else:
        results = train(job, resume=args.resume, overwrite=args.overwrite)
    if comm.is_main_process():
        is_trained = not args.eval_only or args.resume
        text = summary(job, results, best_model(job)[1] if is_trained else job.weights)
        print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} minutes.\n\n{text}")


def summary(job, results: dict, checkpoint: str) -> str:
    """Return the AP table of a checkpoint, and what to do next."""
    from detectron2.evaluation.testing import flatten_results_dict
    from tabulate import tabulate

    from apa_det.engine.closing import first_image
    from apa_det.engine.next_commands import (
        advise_command,
        demo_command,
        output_path,
        report_command,
    )

    names = ("AP", "AP50", "AP75", "APr", "APc", "APf")
    flat = flatten_results_dict(results)
    kinds = {"bbox": "boxes", "segm": "masks"}
    rows = [[kind, *(flat.get(f"{i}/{n}") for n in names)] for i, kind in kinds.items()]
    rows = [[None if x != x else x for x in row] for row in rows if row[1] is not None]
    table = tabulate(rows, ["%", *names], floatfmt=".1f", missingval="–")
    commands = {
        "A report of the predictions, with the worst misses as images": report_command(
            job, job.first_test_dataset()
        ),
        "The detections in an image": demo_command(job, checkpoint, first_image(job)),
        "What suits a dataset, e.g. yours in LVIS or COCO format": advise_command(job),
    }
    steps = [f"{what}:\n  {command}" for what, command in commands.items() if command]
    return "\n".join(
        [
            table,
            f"The numbers vary with the machine and the seed ({job.KEYS['seed']}), by some points.",
            f"\nThe figures are in {output_path(job)}, e.g. val_predictions.png and results.png.",
            "Next:",
            *steps,
        ]
    )
