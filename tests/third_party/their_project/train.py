"""A custom train_net.py: python -m their_project.train DATA OUTPUT [--loop]"""

import itertools
import sys
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import default_setup
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from apa_det.data import register_lvis_format

from . import TheirTrainer, add_their_config


def make_cfg(data, output):
    cfg = get_cfg()
    add_their_config(cfg)
    cfg.merge_from_file(str(Path(__file__).with_name("base.yaml")))
    for split in ("train", "val"):
        register_lvis_format(f"their_{split}", f"{data}/{split}.json", data)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("their_train",), ("their_val",)
    cfg.OUTPUT_DIR = output
    return cfg


def plain_loop(cfg):
    """Train without a trainer, as detectron2's plain_train_net.py does."""
    model = build_model(cfg).train()
    optimizer = TheirTrainer.build_optimizer(cfg, model)
    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, optimizer=optimizer)
    with EventStorage():
        for inputs in itertools.islice(build_detection_train_loader(cfg), cfg.SOLVER.MAX_ITER):
            loss = sum(model(inputs).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    checkpointer.save("model_final")
    return TheirTrainer.test(cfg, model)


def main(data, output, *flags):
    cfg = make_cfg(data, output)
    default_setup(cfg, None)
    if "--loop" in flags:
        return plain_loop(cfg)
    trainer = TheirTrainer(cfg)
    trainer.resume_or_load(resume="--resume" in flags)
    trainer.train()
    return TheirTrainer.test(cfg, trainer.model)


if __name__ == "__main__":
    print("RESULTS", main(*sys.argv[1:]))
