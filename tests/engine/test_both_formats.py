"""A yaml config and its LazyConfig give the same training and evaluation."""

from pathlib import Path

import pytest
import torch

from apa_det.engine import evaluate, setup_job, train

from ..conftest import tiny_datasets, training_flags

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = {
    "mask": "Quickstart/mask_rcnn_R_18_FPN_APA",
    "cascade": "LVISv1-InstanceSegmentation/cascade_mask_rcnn_R_50_FPN_AGLU_gate_score_1x",
    "retinanet": "LVISv1-InstanceSegmentation/retinanet_R_50_FPN_AGLU_gate_1x",
    "faster": "V3Det-Detection/faster_rcnn_SE_R_50_FPN_AGLU_2x",
    "coco": "COCO-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_AGLU_2x",
}


def yaml_options(kind, folder, output):
    options = {
        "OUTPUT_DIR": f"{output}/yaml",
        "SEED": 3,
        "SOLVER.MAX_ITER": 3,
        "SOLVER.STEPS": (2,),
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.BASE_LR": 0.001,
        "DATASETS.LVIS_FORMAT": tiny_datasets(folder),
        "DATASETS.TRAIN": ("tiny_train",),
        "DATASETS.TEST": ("tiny_val",),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.WEIGHTS": "",
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "BN",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.ROI_HEADS.NUM_CLASSES": 4,
        "MODEL.RETINANET.NUM_CLASSES": 4,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 30,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 10,
        "TEST.EVAL_PERIOD": 0,
    }
    return [str(x) for item in options.items() for x in item]


def lazy_options(kind, folder, output):
    options = {
        "train.output_dir": f"{output}/lazy",
        "train.seed": 3,
        "train.max_iter": 3,
        "train.eval_period": 0,
        "train.init_checkpoint": "''",
        "train.device": "cpu",
        "lr_multiplier.scheduler.milestones": [2],
        "lr_multiplier.scheduler.values": [1.0, 0.1],
        "lr_multiplier.scheduler.num_updates": 3,
        "lr_multiplier.warmup_length": 2 / 3,
        "optimizer.lr": 0.001,
        "dataloader.lvis_format": tiny_datasets(folder),
        "dataloader.train.dataset.names": "tiny_train",
        "dataloader.train.total_batch_size": 2,
        "dataloader.train.num_workers": 0,
        "dataloader.train.mapper.augmentations.0.short_edge_length": [64],
        "dataloader.test.dataset.names": "tiny_val",
        "dataloader.test.num_workers": 0,
        "dataloader.test.mapper.augmentations.0.short_edge_length": 64,
        "model.backbone.bottom_up.depth": 18,
        "model.backbone.bottom_up.norm": "BN",
        "model.backbone.bottom_up.freeze_at": 0,
    }
    if kind in ("faster", "coco"):
        options["dataloader.evaluator._target_"] = "apa_det.evaluation.LongTailEvaluator"
    if kind == "retinanet":
        options["model.num_classes"] = 4
        options["model.backbone.top_block.in_channels"] = 512
    else:
        options["model.roi_heads.num_classes"] = 4
        options["model.proposal_generator.post_nms_topk"] = [30, 10]
    return [f"{key}={value}".replace(" ", "") for key, value in options.items()]


def run(config_file, opts):
    trained = train(setup_job(training_flags(config_file, *opts)))
    lazy = str(config_file).endswith(".py")
    output = next(o for i, o in enumerate(opts) if o.endswith("/lazy" if lazy else "/yaml"))
    folder = output.partition("=")[2] or output
    weights = f"{folder}/model_final.pth"
    opts = [*opts, *([f"train.init_checkpoint={weights}"] if lazy else ["MODEL.WEIGHTS", weights])]
    evaluated = evaluate(setup_job(training_flags(config_file, *opts, eval_only=True)))
    assert repr(evaluated) == repr(trained)
    return torch.load(weights, weights_only=True)["model"], evaluated


@pytest.mark.parametrize("kind", NAMES)
def test_same_training_and_evaluation(kind, tiny_dataset, tmp_path):
    """Three iterations from the same seed, and the evaluation of the trained model."""
    file = CONFIGS / NAMES[kind]
    # TorchScript (in RetinaNet's loss) rounds differently from the third call of a function on
    with torch.jit.optimized_execution(False):
        ours, results = run(file.with_suffix(".yaml"), yaml_options(kind, tiny_dataset, tmp_path))
        theirs, lazy_results = run(
            file.with_suffix(".py"), lazy_options(kind, tiny_dataset, tmp_path)
        )
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert repr(results) == repr(lazy_results)
