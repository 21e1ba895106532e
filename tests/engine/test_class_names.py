"""Classes go by name between checkpoint, training set and test set, of any evaluator."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from lvis import LVIS, LVISEval
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from apa_det.data import register_lvis_format
from apa_det.engine import evaluate, read_job, setup_job, train
from apa_det.engine.jobs import write_predictions
from apa_det.errors import UserError

from ..conftest import flat, read_metrics, training_flags
from . import table_detector
from .table_detector import as_coco, detections, relabeled, result_records, save_detector, write

IDS = [2**63 - 1, -5, 0, 40]  # of the first category to the last


@pytest.fixture
def val(tiny_dataset):
    return json.loads((tiny_dataset / "val.json").read_text())


@pytest.fixture
def names(val):
    return [category["name"] for category in sorted(val["categories"], key=lambda c: c["id"])]


@pytest.fixture
def register(tiny_dataset, tmp_path):
    """Register a dataset of an evaluator type; the registration is removed after the test."""
    added = []

    def do(name, dataset, kind="lvis"):
        path = write(tmp_path / f"{name}.json", as_coco(dataset) if kind != "lvis" else dataset)
        if kind == "lvis":
            register_lvis_format(name, path, str(tiny_dataset))
        else:
            register_coco_instances(name, {}, path, str(tiny_dataset))
            del MetadataCatalog.get(name).evaluator_type
            MetadataCatalog.get(name).evaluator_type = kind
        added.append(name)
        return path

    yield do
    for name in added:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def make_args(tiny_config, tmp_path, val, names):
    """Make the flags of an evaluation of a detector whose classes are in another order."""
    rows = detections(val)
    save_detector(tmp_path / "model.pth", rows, [names[i] for i in (2, 0, 3, 1)])
    config = tmp_path / "config.yaml"
    config.write_text(
        f"_BASE_: {tiny_config}\nOUTPUT_DIR: {tmp_path / 'output'}\n"
        f"MODEL: {{META_ARCHITECTURE: TableDetector, WEIGHTS: {tmp_path / 'model.pth'}}}\n"
        "SOLVER: {WEIGHT_DECAY: 0.0}\n"
    )

    def make(*test_sets, opts=(), **flags):
        flags = {"eval_only": True, **flags}
        return training_flags(config, "DATASETS.TEST", f"{test_sets!r}", *opts, **flags)

    make.rows = rows
    return make


def lvis_api(path, records, monkeypatch) -> dict[str, float]:
    monkeypatch.setattr(np, "float", float, raising=False)
    evaluation = LVISEval(LVIS(path), [{**r} for r in records], "bbox")
    evaluation.run()
    return {k: 100 * v for k, v in evaluation.get_results().items() if k.startswith("AP")}


def coco_api(path, records) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        evaluation = COCOeval(truth, truth.loadRes(records), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {k: 100 * v for k, v in zip(("AP", "AP50", "AP75"), evaluation.stats[:3], strict=True)}


@pytest.mark.parametrize("kind", ["lvis", "coco", "v3det"])
@pytest.mark.parametrize("part", [4, 2])
def test_other_order_and_ids(register, make_args, val, names, kind, part, monkeypatch):
    """All names, or a part of them, under other ids, against the reference implementations."""
    other = relabeled(val, dict(zip(names[:part], IDS, strict=False)))
    plain = relabeled(val, dict(zip(names[:part], range(1, part + 1), strict=True)))
    paths = register("names_other", other, kind), register("names_plain", plain, kind)
    results = evaluate(setup_job(make_args("names_other", "names_plain")))
    first, second = results["names_other"], results["names_plain"]
    assert flat(first) == pytest.approx(flat(second), abs=1e-9)
    assert list(first) == (["bbox"] if kind == "v3det" else ["bbox", "segm"])
    for path, dataset in zip(paths, (other, plain), strict=True):
        records = result_records(dataset, make_args.rows)
        if kind == "lvis":
            expected = lvis_api(path, records, monkeypatch)
            expected = {k: v for k, v in expected.items() if k in first["bbox"] and v >= 0}
        else:
            expected = coco_api(path, records)
        assert 10 < expected["AP"] < 100
        for metric, value in expected.items():
            assert first["bbox"][metric] == pytest.approx(value, abs=1e-4)


def test_lazy_config(register, make_args, quickstart, val, names, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "table_detector", table_detector)
    register("names_plain", val)
    register("names_other", relabeled(val, dict(zip(names, IDS, strict=True))))
    config = tmp_path / "config.py"
    config.write_text(
        "from detectron2.config import LazyCall as L, LazyConfig\n"
        "from table_detector import TableDetector\n"
        f"cfg = LazyConfig.load({quickstart.lazy!r})\n"
        "dataloader, optimizer, lr_multiplier, train = (\n"
        "    cfg[k] for k in ('dataloader', 'optimizer', 'lr_multiplier', 'train'))\n"
        "model = L(TableDetector)()\n"
    )
    opts = [opt for opt in quickstart.lazy_opts if not opt.startswith("model.")]
    opts += [f"train.init_checkpoint={tmp_path}/model.pth", f"train.output_dir={tmp_path}/out"]
    results = [
        evaluate(setup_job(training_flags(config, *opts, *more, eval_only=True)))
        for more in (
            ["dataloader.test.dataset.names=names_plain"],
            ["dataloader.test.dataset.names=names_other"],
        )
    ]
    assert flat(results[0]) == pytest.approx(flat(results[1])) and results[0]["bbox"]["AP"] > 10


def test_evaluation_in_training(register, make_args, val, names, tmp_path):
    """On a subset and after training; the model has the order of the training set."""
    register("names_plain", val)
    register("names_other", relabeled(val, dict(zip(names, IDS, strict=True))))
    expected = evaluate(setup_job(make_args("names_plain")))
    save_detector(tmp_path / "model.pth", make_args.rows, names)
    opts = (
        "TEST.SUBSET",
        6,
        "TEST.EVAL_PERIOD",
        1,
        "TEST.BEST_METRIC",
        "names_other/subset/bbox/AP",
    )
    args = make_args("names_plain", "names_other", opts=opts, eval_only=False)
    results = train(setup_job(args))
    for name in ("names_plain", "names_other"):
        whole = {k: v for k, v in flat(results[name]).items() if not k.startswith("subset")}
        assert whole == pytest.approx(flat(expected), abs=1e-9)
        subset = {k.removeprefix("subset/"): v for k, v in flat(results[name]).items()}
        assert subset == pytest.approx(whole, abs=1e-9)
    best = tmp_path / "output/model_best.pth"
    assert torch.load(best)["class_names"] == names
    (ap,) = {
        line["names_other/subset/bbox/AP"]
        for line in read_metrics(tmp_path / "output")
        if "names_other/subset/bbox/AP" in line
    }
    assert ap == pytest.approx(expected["bbox"]["AP"])


def test_training_from_another_order(register, make_args, val, names, tmp_path):
    """Class rows are copied by name; if there are none to find, it is an error."""
    register("names_plain", val)
    with pytest.raises(UserError, match="in another order, but its class scores were not found"):
        train(setup_job(make_args("names_plain", eval_only=False)))


def test_names_unknown_to_the_model(register, make_args, val, names):
    rename = {names[0]: "Ω mega", names[3]: "an elk"}
    register("names_plain", relabeled(val, dict(zip(names, IDS, strict=True)), rename))
    message = "names_plain has 2 classes that the model does not have: '(Ω mega|an elk)', "
    with pytest.raises(UserError, match=message):
        setup_job(make_args("names_plain"))
    with pytest.raises(UserError, match=message):  # the model has those of the training set
        setup_job(make_args("names_plain", eval_only=False))


def test_similar_names(register, make_args, val, names, tmp_path):
    register("names_plain", val)
    rename = {name: name.upper().replace("_", " ") for name in names}
    register("names_similar", relabeled(val, dict(zip(names, IDS, strict=True)), rename))
    results = evaluate(setup_job(make_args("names_plain", "names_similar")))
    assert flat(results["names_plain"]) == pytest.approx(flat(results["names_similar"]), abs=1e-9)
    log = (tmp_path / "output/log.txt").read_text()
    assert "4 of the classes of names_similar have similar names" in log


@pytest.mark.parametrize("kind", ["lvis", "coco"])
def test_checkpoint_without_names(register, make_args, val, names, tmp_path, kind):
    """The names are those of the training set; without one, those of each test set."""
    register("names_plain", val, kind)
    register("names_other", relabeled(val, dict(zip(names, IDS, strict=True))), kind)
    expected = flat(evaluate(setup_job(make_args("names_plain"))))
    save_detector(tmp_path / "model.pth", make_args.rows, names, stored=False)
    for name in ("names_plain", "names_other"):
        results = flat(evaluate(setup_job(make_args(name))))
        assert results == pytest.approx(expected, abs=1e-9)
    log = (tmp_path / "output/log.txt").read_text()
    assert log.count("has no class names: its classes are assumed to be those of the training") == 1
    for name in ("names_plain", "names_other"):
        job = setup_job(make_args(name, opts=("DATASETS.TRAIN", "('nowhere',)")))
        same = flat(evaluate(job)) == pytest.approx(expected, abs=1e-9)
        assert same == (name == "names_plain")
    assert "assumed to be those of each test set" in (tmp_path / "output/log.txt").read_text()


def test_predictions(register, make_args, val, names, tmp_path):
    """Written with the ids of the test set, without classes that it lacks."""
    other = relabeled(val, dict(zip(names[:2], IDS, strict=False)))
    register("names_other", other)
    path = write_predictions(setup_job(make_args("names_other")), str(tmp_path / "out"))
    expected = result_records(other, make_args.rows)
    written = json.loads(open(path).read())
    key = [(r["image_id"], r["category_id"], r["bbox"]) for r in expected]
    assert sorted((r["image_id"], r["category_id"], r["bbox"]) for r in written) == sorted(key)


def test_training_sets(register, make_args, val, names, tiny_dataset):
    train_set = json.loads((tiny_dataset / "train.json").read_text())
    register("names_first", train_set)
    register("names_second", relabeled(train_set, dict(zip(names, IDS, strict=True))))
    register("names_coco", relabeled(train_set, dict(zip(names, IDS, strict=True))), "coco")
    other = relabeled(train_set, dict(zip(names, IDS, strict=True)), {names[0]: "elk"})
    register("names_elk", other)

    def job(*train_sets):
        opts = ("DATASETS.TRAIN", f"{train_sets!r}", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
        opts += ("MODEL.WEIGHTS", "")
        args = make_args("tiny_val", opts=opts, eval_only=False)
        args.overwrite = True
        return setup_job(args)

    first, second = DatasetCatalog.get("names_first"), None
    job("names_first", "names_second")
    second = DatasetCatalog.get("names_second")
    for a, b in zip(first, second, strict=True):
        assert [x["category_id"] for x in a["annotations"]] == [
            x["category_id"] for x in b["annotations"]
        ]
    first, second = (MetadataCatalog.get(f"names_{n}") for n in ("first", "second"))
    assert first.class_image_count == second.class_image_count
    assert first.class_frequency == second.class_frequency
    assert [second.thing_dataset_id_to_contiguous_id[i] for i in IDS] == [0, 1, 2, 3]
    train(job("names_first", "names_second"))
    with pytest.raises(UserError, match="names_coco must have its classes in the order of names_"):
        job("names_first", "names_coco")
    message = (
        "names_elk must have the classes of names_first, but only names_elk has 'elk' and only"
    )
    with pytest.raises(UserError, match=message):
        job("names_first", "names_elk")


def test_resume_with_another_order(register, make_args, val, names, tiny_dataset, tmp_path):
    train_set = json.loads((tiny_dataset / "train.json").read_text())
    opts = ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.WEIGHTS", "")
    train(setup_job(make_args("tiny_val", opts=opts, eval_only=False)))
    register("names_turned", relabeled(train_set, dict(zip(names, [4, 3, 2, 1], strict=True))))
    opts += ("DATASETS.TRAIN", "('names_turned',)")
    args = make_args("tiny_val", opts=opts, eval_only=False, resume=True)
    with pytest.raises(UserError, match=f"class 0 is '{names[0]}' in the file, '{names[3]}' in"):
        train(setup_job(args), resume=True)
    # As weights to start from: by name
    weights = torch.load(tmp_path / "output/model_final.pth")["model"]
    opts += ("MODEL.WEIGHTS", f"{tmp_path}/output/model_final.pth", "SOLVER.BASE_LR", 0.0)
    opts += ("OUTPUT_DIR", f"{tmp_path}/second", "SOLVER.MAX_ITER", 1)
    train(setup_job(make_args("tiny_val", opts=opts, eval_only=False)))
    copied = torch.load(tmp_path / "second/model_final.pth")["model"]
    for layer, order in (("cls_score", [3, 2, 1, 0, 4]),):
        name = f"roi_heads.box_predictor.{layer}.weight"
        assert torch.equal(copied[name], weights[name][order])
    # The same results
    results = [
        flat(
            evaluate(
                setup_job(
                    make_args(
                        "tiny_val",
                        opts=(
                            "MODEL.META_ARCHITECTURE",
                            "GeneralizedRCNN",
                            "MODEL.WEIGHTS",
                            f"{tmp_path}/{folder}/model_final.pth",
                        ),
                    )
                )
            )
        )
        for folder in ("output", "second")
    ]
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def test_demo_shows_the_names_of_the_model(make_args, register, val, names, tmp_path):
    from apa_det.demo import build_predictor

    register("names_plain", val)
    opts = ("DATASETS.TEST", "('names_plain',)", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    opts += ("MODEL.WEIGHTS", f"{tmp_path}/rcnn.pth")
    args = make_args("names_plain", opts=opts)
    model = read_job(args.config_file, args.opts).build_model()
    turned = names[::-1]
    torch.save({"model": model.state_dict(), "class_names": turned}, tmp_path / "rcnn.pth")
    classes = build_predictor(read_job(args.config_file, args.opts, eval_only=True), "0").classes
    ids = {category["name"]: category["id"] for category in val["categories"]}
    groups = {category["name"]: category["frequency"] for category in val["categories"]}
    assert classes.names == tuple(turned)
    assert classes.category_ids.tolist() == [ids[name] for name in turned]
    found = [classes.groups.names[i] for i in classes.group_indices]
    assert found == [groups[name] for name in turned]
    torch.save({"model": model.state_dict(), "class_names": list("abcd")}, tmp_path / "rcnn.pth")
    classes = build_predictor(read_job(args.config_file, args.opts, eval_only=True), "0").classes
    assert classes.names == tuple("abcd") and set(classes.group_indices) == {-1}
