from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from apa_det.data import generate_dataset
from apa_det.engine import Trainer, load_model, model_classes, setup_job
from apa_det.engine.testing import SubsetTest
from apa_det.errors import UserError
from apa_det.evaluation import METRICS, LongTailEvaluator

from ..conftest import flat, read_metrics

ROOT = Path(__file__).parents[2]
TRAIN_NET = ROOT / "tools/train_net.py"


def final_metrics(output):
    last = read_metrics(output)[-1]
    return {k: v for k, v in last.items() if k.startswith(("bbox/", "segm/"))}


def test_train_then_evaluate_then_resume(arguments, output, train_net):
    evaluation = ("TEST.EVAL_PERIOD", 2, "TEST.BEST_METRIC", "bbox/AP50")
    train_net(arguments("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, *evaluation))
    trained = final_metrics(output)
    assert set(trained) >= {"bbox/AP", "bbox/APr", "segm/AP", "segm/APr"}
    assert not any(name.endswith("APc") for name in trained)  # NaN without ground truth
    assert "NaN" not in (output / "metrics.json").read_text()
    (tensorboard,) = output.glob("events.*")
    scalars = EventAccumulator(str(tensorboard)).Reload().Tags()["scalars"]
    assert {"bbox/APr", "apa/backbone.bottom_up.stem.act/lambda"} <= set(scalars)
    assert (output / "apa_parameters.png").stat().st_size > 1000
    log = (output / "log.txt").read_text()
    assert "Evaluation results for segm" in log and "Categories evaluated: 4 rare, 0 common" in log
    assert "apa/backbone" not in log
    best = torch.load(output / "model_best.pth", weights_only=True)
    assert best["value"] == max(m["bbox/AP50"] for m in read_metrics(output) if "bbox/AP50" in m)

    # --eval-only gives the results of the end of training
    weights = ("MODEL.WEIGHTS", output / "model_final.pth")
    separate = ("OUTPUT_DIR", output / "evaluation")
    results = train_net(arguments(*weights, *separate, eval_only=True))
    assert list(results["bbox"]) == list(METRICS)
    assert flat(results) == trained

    # --resume continues after the last iteration
    saved = torch.load(output / "model_final.pth", weights_only=True)
    trainer = Trainer(setup_job(arguments("SOLVER.MAX_ITER", 6, resume=True)).config)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4
    resumed, ended = trainer.optimizer.state_dict(), saved["trainer"]["_trainer"]["optimizer"]
    assert resumed["param_groups"] == ended["param_groups"]
    for key, state in ended["state"].items():
        assert torch.equal(resumed["state"][key]["momentum_buffer"], state["momentum_buffer"])
    assert trainer.scheduler.last_epoch == 4
    trainer.train()
    iterations = [m["iteration"] for m in read_metrics(output) if "total_loss" in m]
    assert iterations == [1, 3, 5]  # the first one has an evaluation


def test_checkpoint_of_another_class_count(arguments, output, tmp_path, train_net):
    Trainer(setup_job(arguments()).config).checkpointer.save("model_final")
    generate_dataset(tmp_path, num_train=5, num_val=2, num_classes=5, image_size=64)
    options = [
        *("DATASETS.LVIS_FORMAT", [["engine_five", f"{tmp_path}/train.json", f"{tmp_path}"]]),
        *("DATASETS.TRAIN", ("engine_five",), "DATASETS.TEST", ("engine_five",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 5),
    ]
    shapes = r"cls_score.weight has shape \(5, 16\) in the file, \(6, 16\) in the model"
    with pytest.raises(UserError, match=shapes):
        train_net(arguments(*options, resume=True))
    weights = ("MODEL.WEIGHTS", output / "model_final.pth")
    with pytest.raises(UserError, match="_final.pth has 4 classes, but MODEL.ROI_HEADS"):
        train_net(arguments(*options, *weights, eval_only=True))


def test_subset_while_training(arguments, output, train_net):
    options = ("TEST.SUBSET", 3, "TEST.EVAL_PERIOD", 1, "TEST.BEST_METRIC", "subset/bbox/AP50")
    train_net(arguments("SOLVER.MAX_ITER", 3, *options))
    evaluations = [m for m in read_metrics(output) if "subset/bbox/AP" in m]
    assert [("bbox/AP" in m) for m in evaluations] == [False, False, True]
    log = (output / "log.txt").read_text()
    assert log.count("Evaluating 3 images of tiny_val") == 2
    assert "processed only" not in log
    best = torch.load(output / "model_best.pth", weights_only=True)
    assert best["value"] >= max(m["subset/bbox/AP50"] for m in evaluations)
    assert not (output / "inference/lvis_instances_results.json").exists()

    # the last subset metrics equal those of an evaluation of the same images
    weights = ("MODEL.WEIGHTS", output / "model_final.pth")
    job = setup_job(arguments("TEST.SUBSET", 3, *weights, eval_only=True))
    results = SubsetTest(job)(load_model(job))
    assert flat(results) == {k: v for k, v in evaluations[-1].items() if k.startswith("subset/")}


def test_files_and_extra_metrics(arguments, output, train_net):
    options = ("TEST.PER_CATEGORY", True, "TEST.EXTRA_METRICS", "['AR','pool']")
    train_net(arguments("SOLVER.MAX_ITER", 1, "TEST.FREQUENCY_GROUPS", "few:3,many", *options))
    assert {"bbox/APfew", "segm/ARmany@300", "bbox/AP_pool"} <= set(final_metrics(output))
    assert (output / "inference/segm_per_category.csv").exists()


def test_test_time_augmentation(arguments, output, train_net):
    augmentation = ("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96))
    train_net(arguments("SOLVER.MAX_ITER", 1, *augmentation))
    assert {"bbox/AP", "bbox_TTA/AP", "segm_TTA/APr"} <= set(read_metrics(output)[-1])


def test_other_number_of_classes_is_initialized(arguments, output):
    cfg = setup_job(arguments()).config
    model = Trainer.build_model(cfg)
    state = model.state_dict()
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(81, 16)
    torch.save({"model": state}, output / "coco.pth")
    trainer = Trainer(setup_job(arguments("MODEL.WEIGHTS", output / "coco.pth")).config)
    trainer.resume_or_load(resume=False)
    log = (output / "log.txt").read_text()
    assert "box_predictor.cls_score.weight ((81, 16) in the file, (5, 16) in the model)" in log
    assert torch.equal(
        trainer.model.state_dict()["roi_heads.box_head.fc1.weight"],
        state["roi_heads.box_head.fc1.weight"],
    )


def test_class_count_of_the_training_set(arguments):
    with pytest.raises(UserError, match="tiny_train has 4 classes"):
        Trainer(setup_job(arguments("DATASETS.TEST", (), "MODEL.ROI_HEADS.NUM_CLASSES", 5)).config)


def groups_by_name(cfg):
    model = Trainer.build_model(cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = Trainer.build_optimizer(cfg, model)
    decay = {
        names[id(p)]: group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert set(decay) == set(names.values())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    return decay, optimizer


def test_weight_decay_of_lambda_and_kappa(arguments):
    decay = ("SOLVER.WEIGHT_DECAY", 0.1, "SOLVER.WEIGHT_DECAY_NORM", 0.01)
    cfg = setup_job(arguments(*decay)).config
    plain, optimizer = groups_by_name(cfg)
    assert {v for k, v in plain.items() if k.endswith(("lambda_param", "kappa_param"))} == {0.1}
    default = DefaultTrainer.build_optimizer(cfg, Trainer.build_model(cfg))
    sizes = [[len(g["params"]) for g in o.param_groups] for o in (optimizer, default)]
    assert sizes[0] == sizes[1]

    ours, optimizer = groups_by_name(
        setup_job(arguments(*decay, "MODEL.APA.WEIGHT_DECAY", 0.0)).config
    )
    for name, value in ours.items():
        chosen = name.endswith(("lambda_param", "kappa_param"))
        assert value == (0.0 if chosen else plain[name]), name
    for group in optimizer.param_groups:
        assert group["lr"] == 0.01 and group["momentum"] == 0.9


def test_evaluators(arguments, tiny_dataset):
    cfg = setup_job(arguments()).config
    assert isinstance(Trainer.build_evaluator(cfg, "tiny_val"), LongTailEvaluator)
    metadata = MetadataCatalog.get("engine_coco")
    metadata.set(
        json_file=f"{tiny_dataset}/val.json", evaluator_type="coco", thing_classes=list("abcd")
    )
    assert isinstance(Trainer.build_evaluator(cfg, "engine_coco"), COCOEvaluator)
    DatasetCatalog.register("engine_coco", list)
    long_tail = setup_job(arguments("TEST.LONG_TAIL", True)).config
    assert isinstance(Trainer.build_evaluator(long_tail, "engine_coco"), LongTailEvaluator)
    DatasetCatalog.pop("engine_coco"), MetadataCatalog.pop("engine_coco")
    MetadataCatalog.get("engine_other").evaluator_type = "other"
    with pytest.raises(NotImplementedError, match="engine_other of evaluator_type 'other'"):
        Trainer.build_evaluator(cfg, "engine_other")


def test_retinanet_has_boxes_only(arguments, output, train_net):
    options = [
        *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 4),
        *("MODEL.BACKBONE.NAME", "build_apa_retinanet_resnet_fpn_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.MASK_ON", False),
        *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "SOLVER.MAX_ITER", 1),
    ]
    train_net(arguments(*options))
    assert {name.split("/")[0] for name in final_metrics(output)} == {"bbox"}


def test_scaled_to_another_number_of_processes(arguments):
    options = [
        *("SOLVER.REFERENCE_WORLD_SIZE", 4, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.MAX_ITER", 400),
        *("SOLVER.STEPS", (200, 300), "SOLVER.WARMUP_ITERS", 100, "SOLVER.ACCUMULATE", 2),
        *("SOLVER.CHECKPOINT_PERIOD", 200, "TEST.EVAL_PERIOD", 100, "SOLVER.EMA.DECAY", 0.99),
    ]
    cfg = setup_job(arguments(*options)).config
    for processes, growth in ((8, 2), (2, 0.5), (1, 0.25)):
        scaled = Trainer.auto_scale_workers(cfg, processes)
        assert scaled.is_frozen()
        expected = DefaultTrainer.auto_scale_workers(cfg, processes).clone()
        expected.defrost()
        expected.MODEL.APA.LOG_PERIOD = 2 / growth
        expected.SOLVER.EMA.DECAY = 0.99**growth
        assert scaled == expected
        assert scaled.SOLVER.IMS_PER_BATCH == 4 * processes  # in the same number of parts
        assert (scaled.SOLVER.ACCUMULATE, scaled.SOLVER.MAX_ITER) == (2, 400 / growth)
        assert scaled.TEST.EVAL_PERIOD == 100 / growth
    assert Trainer.auto_scale_workers(cfg, 4) is cfg
    trainer = Trainer(cfg)  # in one process
    assert (trainer.max_iter, trainer.data_loader.batch_size) == (1600, 4)
    assert trainer._trainer.num_parts == 2


def test_machines_that_do_not_share_the_folder(arguments, output, monkeypatch):
    Trainer(setup_job(arguments()).config).checkpointer.save("model_final")
    trainer = Trainer(setup_job(arguments(resume=True)).config)
    monkeypatch.setattr(comm, "all_gather", lambda seen: [seen, ""])
    with pytest.raises(UserError, match="The machines see different last checkpoints in "):
        trainer.resume_or_load(resume=True)


def test_evaluation_reads_its_checkpoint_once(arguments, output, tmp_path, monkeypatch):
    """Its class names are checked before the model is built. A new file is read again."""
    job, path, reads = setup_job(arguments()), tmp_path / "weights.pth", []
    read = model_classes.load_checkpoint
    monkeypatch.setattr(model_classes, "load_checkpoint", lambda p: reads.append(p) or read(p))
    for number in (1, 2):
        state = job.build_model().state_dict()
        classes = ["a", "b", "c", "d"][:: 1 if number == 1 else -1]
        torch.save({"model": state, "class_names": classes, "round": [number] * number}, path)
        evaluated = job.changed({"weights": str(path), "test_datasets": ()})
        names = model_classes.check_classes(evaluated, eval_only=True)
        model = load_model(evaluated)
        assert reads == [str(path)] * number and names == classes
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
