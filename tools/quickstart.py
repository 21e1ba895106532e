#!/usr/bin/env python
"""Make the embedded dataset, train a small APA Mask R-CNN, evaluate it and draw detections."""

import os
import time
from pathlib import Path

from detectron2.engine import default_argument_parser

from apa_det.data import generate_dataset
from apa_det.engine import Trainer, setup
from apa_det.evaluation import draw_detections

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = default_argument_parser()
    parser.set_defaults(config_file="configs/Quickstart/mask_rcnn_R_18_FPN_APA.yaml")
    args = parser.parse_args()
    start = time.perf_counter()

    print("[1/3] The embedded dataset: datasets/quickstart")
    generate_dataset("datasets/quickstart")

    print("[2/3] Training and evaluating")
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()

    print("[3/3] A picture of detections beside their ground truth")
    picture = os.path.join(cfg.OUTPUT_DIR, "detections.png")
    draw_detections(cfg, trainer.model, cfg.DATASETS.TEST[0], picture)
    print(
        f"Done in {(time.perf_counter() - start) / 60:.1f} minutes. In {cfg.OUTPUT_DIR}: "
        "model_final.pth, detections.png, log.txt, metrics.json, TensorBoard's events."
    )


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
