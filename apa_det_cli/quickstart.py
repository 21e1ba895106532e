"""Train a small APA Mask R-CNN on a generated dataset.

It evaluates the model and draws its detections, all in the current folder. The flags are those of
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
    from apa_det.engine import evaluate, load_model, setup_job, train
    from apa_det.evaluation import draw_detections

    start = time.perf_counter()
    if comm.is_main_process() and not os.path.isfile(f"{DATASET}/val.json"):  # written last
        print(f"[1/3] Generating the dataset in {DATASET}")
        generate_dataset(DATASET)
    comm.synchronize()

    print("[2/3] Training and evaluating, about 4 minutes on two CPU cores")
    args.overwrite = not args.resume
    job = setup_job(args)
    if args.eval_only:
        evaluate(job, resume=args.resume)
    else:
        train(job, resume=args.resume, overwrite=args.overwrite)
    if not comm.is_main_process():
        return

    print("[3/3] Drawing detections beside their ground truth")
    name = job.test_datasets[0]
    model = load_model(job, resume=args.resume or not args.eval_only)
    loader = job.build_test_loader(job.read_test_records(name))
    draw_detections(model, loader, name, os.path.join(job.output_dir, "detections.png"))
    print(
        f"Done in {(time.perf_counter() - start) / 60:.1f} minutes. In {job.output_dir}: "
        "detections.png, model_final.pth, log.txt, metrics.json and TensorBoard's events."
    )
