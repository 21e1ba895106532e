"""Use published files from the command line: convert, evaluate, fine-tune."""

import json
import logging
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apa_det.checkpoint import load_checkpoint
from apa_det.engine import Trainer, load_model, setup_job
from apa_det_cli import train_detector

from ..conftest import tiny_datasets, training_flags

ROOT = Path(__file__).parents[2]
LVIS = ROOT / "configs/LVISv1-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x.yaml"
NUM_CLASSES = 1203
SIZES = [(96, 130), (96, 160)]


@pytest.fixture(scope="module")
def detector(published):
    return published.randomize(published.Detector(NUM_CLASSES))


@pytest.fixture(scope="module")
def folder(detector, tmp_path_factory):
    """A folder with the detector's file and a dataset of two images of noise."""
    folder = tmp_path_factory.mktemp("data")
    config = Namespace(model="SE_ResNet")  # stands for a class that users may not have
    checkpoint = {"meta": {"config": config, "epoch": 24}, "state_dict": detector.state_dict()}
    torch.save(checkpoint, folder / "published.pth")
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for k, (height, width) in enumerate(SIZES, start=1):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        images.append(
            {
                "id": k,
                "file_name": f"{k}.png",
                "height": height,
                "width": width,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        )
        annotations.append(
            {
                "id": k,
                "image_id": k,
                "category_id": k,
                "bbox": [10, 10, 20, 20],
                "area": 400,
                "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]],
            }
        )
    categories = [
        {"id": k, "name": f"class {k}", "image_count": k, "instance_count": k, "frequency": "r"}
        for k in range(1, NUM_CLASSES + 1)
    ]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "val.json").write_text(json.dumps(dataset))
    return folder


def arguments(folder, output, weights):
    opts = (
        f"MODEL.DEVICE cpu MODEL.WEIGHTS {weights} OUTPUT_DIR {output} "
        "TEST.SAVE_PREDICTIONS True "
        "INPUT.MIN_SIZE_TEST 96 DATALOADER.NUM_WORKERS 0 TEST.DETECTIONS_PER_IMAGE 20 "
        "MODEL.RPN.PRE_NMS_TOPK_TEST 100 MODEL.RPN.POST_NMS_TOPK_TEST 100 "
        "DATASETS.TRAIN () DATASETS.TEST ('published_val',)".split()
        + ["DATASETS.LVIS_FORMAT", f"[['published_val', '{folder}/val.json', '{folder}']]"]
    )
    return training_flags(LVIS, *opts, eval_only=True)


@torch.no_grad()
def test_convert_and_evaluate(detector, folder, tool, tmp_path, capsys):
    converted = tmp_path / "converted.pth"
    flags = ["--output", converted, "--config-file", LVIS]
    assert tool("convert_checkpoint", folder / "published.pth", *flags) == 0
    assert f"\n{len(detector.state_dict())} renamed\n" in capsys.readouterr().out

    args = arguments(folder, tmp_path / "output", converted)
    results = train_detector.main(args)
    assert results.keys() == {"bbox", "segm"}
    path = tmp_path / "output/inference/lvis_instances_results.json"
    detections = json.loads(path.read_text())
    for k in range(1, len(SIZES) + 1):
        image = torch.from_numpy(np.array(Image.open(folder / f"{k}.png"))).permute(2, 0, 1)
        boxes, scores, classes, _ = detector.detect(image.float(), proposals=100, limit=20)
        ours = [d for d in detections if d["image_id"] == k]
        assert len(ours) == 20
        assert [d["category_id"] for d in ours] == (classes + 1).tolist()
        torch.testing.assert_close(
            torch.tensor([d["score"] for d in ours]), scores, rtol=1e-5, atol=1e-5
        )
        boxes[:, 2:] -= boxes[:, :2]
        torch.testing.assert_close(
            torch.tensor([d["bbox"] for d in ours]), boxes, rtol=0, atol=1e-3
        )


def test_published_file_as_weights(folder, detector, tmp_path, caplog):
    """The tools also accept it unconverted."""
    for name in ("apa_det", "fvcore"):
        logging.getLogger(name).addHandler(caplog.handler)
    job = setup_job(arguments(folder, tmp_path / "output", folder / "published.pth"))
    model = load_model(job)
    weight = model.roi_heads.mask_head.predictor.weight
    assert torch.equal(weight, detector.roi_head.mask_head.conv_logits.weight)
    assert "published detector" in caplog.text and "argparse.Namespace" in caplog.text
    assert "not used by the model" not in caplog.text


def test_fine_tuning_from_a_converted_backbone(published, tool, tiny_dataset, tmp_path):
    theirs = published.randomize(published.SEResNet(num_classes=10))
    torch.save({"model": theirs.state_dict(), "args": Namespace()}, tmp_path / "imagenet.pth")
    weights = tmp_path / "pretrained.pth"
    assert tool("convert_checkpoint", tmp_path / "imagenet.pth", "--output", weights) == 0
    assert not any("fc" in name.split(".") for name in load_checkpoint(str(weights))["model"])

    args = arguments(tiny_dataset, tmp_path / "output", weights)
    args.eval_only = False
    opts = dict(zip(args.opts[::2], args.opts[1::2], strict=True))
    opts["DATASETS.LVIS_FORMAT"] = str(tiny_datasets(tiny_dataset))
    opts["DATASETS.TRAIN"], opts["DATASETS.TEST"] = "('tiny_train',)", "()"
    opts |= {
        "MODEL.ROI_HEADS.NUM_CLASSES": "4",
        "MODEL.ROI_BOX_HEAD.USE_DROP_LOSS": "False",
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.MAX_ITER": "1",
        "SOLVER.STEPS": "()",
        "SOLVER.WARMUP_ITERS": "0",
        "SOLVER.AMP.ENABLED": "False",
    }
    args.opts = [part for pair in opts.items() for part in pair]
    cfg = setup_job(args).config
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    bottom_up = trainer.model.backbone.bottom_up
    their_block, our_block = theirs.layer3[2], bottom_up.res4[2]

    def pairs():
        yield bottom_up.stem.act.lambda_param, theirs.relu.lambda_param
        yield bottom_up.stem.conv1.weight, theirs.conv1.weight
        yield bottom_up.res2[0].conv1.norm.running_var, theirs.layer1[0].bn1.running_var
        yield our_block.conv2.weight, their_block.conv2.weight
        yield our_block.conv2.norm.running_mean, their_block.bn2.running_mean
        yield our_block.act3.kappa_param, their_block.unirect3.kappa_param
        yield our_block.gate.fc1.weight, their_block.se.excitation[0].weight

    assert all(torch.equal(ours, expected) for ours, expected in pairs())
    trainer.train()
    changed = [not torch.equal(ours, expected) for ours, expected in pairs()]
    assert changed == [True, False, False, True, False, True, True]
