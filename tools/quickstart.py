#!/usr/bin/env python3
"""Make the embedded dataset, train a small APA Mask R-CNN, evaluate it and draw detections.

It takes the flags and overrides of train_net.py.
"""

import os
import time
from pathlib import Path

from detectron2.engine import default_argument_parser

from apa_det.data import generate_dataset
from apa_det.engine import Trainer, run, setup
from apa_det.evaluation import draw_detections

CONFIG = "configs/Quickstart/mask_rcnn_R_18_FPN_APA.yaml"
DATASET = "datasets/quickstart"


def main(args):
    start = time.perf_counter()
    if not os.path.isfile(f"{DATASET}/val.json"):  # written last
        print(f"[1/3] Making the embedded dataset in {DATASET}")
        generate_dataset(DATASET)

    print("[2/3] Training and evaluating, some 4 minutes on two CPU cores")
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()

    print("[3/3] Drawing detections beside their ground truth")
    name = cfg.DATASETS.TEST[0]
    picture = os.path.join(cfg.OUTPUT_DIR, "detections.png")
    draw_detections(trainer.model, Trainer.build_test_loader(cfg, name), name, picture)
    print(
        f"Done in {(time.perf_counter() - start) / 60:.1f} minutes. In {cfg.OUTPUT_DIR}: "
        "detections.png, model_final.pth, log.txt, metrics.json and TensorBoard's events."
    )


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    parser = default_argument_parser()
    parser.set_defaults(config_file=CONFIG)
    run(main, parser.parse_args())
