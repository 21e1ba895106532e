import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from apa_det.data import register_lvis_format
from apa_det.engine import Trainer, YamlJob, check_job, read_config

CALIBRATION = ("MODEL.ROI_BOX_HEAD.CALIBRATION",)


@pytest.fixture
def make_job(arguments, data):
    for split in ("train", "val"):
        register_lvis_format(f"engine_{split}", f"{data}/{split}.json", str(data))

    def make(*opts):
        cfg = read_config(arguments().config_file, [str(opt) for opt in opts])
        return YamlJob(cfg, Trainer)

    return make


@pytest.fixture
def register():
    names = []

    def add(name, json_file, image_root):
        names.append(name)
        register_lvis_format(name, json_file, image_root)

    yield add
    for name in names:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def test_good_configs(make_job):
    check_job(make_job())
    check_job(make_job("TEST.BEST_METRIC", "segm/APr"))
    check_job(make_job("DATASETS.TEST", ()))


@pytest.mark.parametrize(
    "opts, error, message",
    [
        (["DATASETS.TEST", ("engine_vall",)], ValueError, 'named "engine_vall".*engine_val'),
        (["DATASETS.TRAIN", ("nowhere",)], ValueError, 'No dataset named "nowhere"'),
        (["DATASETS.TRAIN", ()], ValueError, "DATASETS.TRAIN is empty"),
        (["DATASETS.TEST", ("lvis_v1_val",)], FileNotFoundError, "Download"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 5], ValueError, "engine_val has 4 .*NUM_CLASSES is 5"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], ValueError, "MODEL.RETINANET.NUM_CLASSES is 80"),
        (
            ["MODEL.META_ARCHITECTURE", "APAInjected"]
            + ["MODEL.APA.INJECT.META_ARCHITECTURE", "RetinaNet"],
            ValueError,
            "MODEL.RETINANET.NUM_CLASSES is 80",
        ),
        (
            ["MODEL.APA.INJECT.LIKE", "replaced"],
            ValueError,
            "no effect with .*ARCHITECTURE GeneralizedRCNN: set that to APAInjected",
        ),
        (["SOLVER.ACCUMULATE", 0], ValueError, "ACCUMULATE must be >= 1, got 0"),
        (
            ["SOLVER.ACCUMULATE", 3],
            ValueError,
            "BATCH must be a multiple of 3, got 2: .*1 processes .*3 equal parts",
        ),
        (
            ["SOLVER.ACCUMULATE", 2, "SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 24],
            ValueError,
            "multiple of 16, .* 8 processes .SOLVER.REFERENCE_WORLD_SIZE.",
        ),
        (
            ["SOLVER.EMA.DECAY", 1.0, "SOLVER.EMA.ENABLED", True],
            ValueError,
            r"in \[0, 1\), got 1.0",
        ),
        (
            ["SOLVER.EMA.ENABLED", True, "TEST.PRECISE_BN.ENABLED", True],
            ValueError,
            "set one of the two to False",
        ),
        (
            ["SOLVER.FSDP", True, "SOLVER.FIND_UNUSED_PARAMETERS", True],
            ValueError,
            "does not work with SOLVER.FSDP",
        ),
        (["MODEL.WEIGHTS", "missing.pth"], FileNotFoundError, "MODEL.WEIGHTS is missing.pth"),
        (
            ["TEST.BEST_METRIC", "bbox/APx"],
            ValueError,
            "bbox/APx is not a metric.*bbox/APr.*segm/AP",
        ),
        (["TEST.BEST_METRIC", "segm/AP", "MODEL.MASK_ON", False], ValueError, "choose one of bbox"),
        (["TEST.BEST_METRIC", "bbox/AP", "DATASETS.TEST", ()], ValueError, "there is no test set"),
        (
            ["TEST.BEST_METRIC", "bbox/AP", "TEST.SUBSET", 3],
            ValueError,
            "choose one of subset/bbox/AP,",
        ),
        (
            ["TEST.BEST_METRIC", "bbox/APr", "TEST.FREQUENCY_GROUPS", "few:3,many"],
            ValueError,
            "bbox/APfew",
        ),
        (["TEST.FREQUENCY_GROUPS", "few:3"], ValueError, "and the last must not have one"),
        (
            ["TEST.EXTRA_METRICS", ["speed"]],
            ValueError,
            "EXTRA_METRICS must be among AR, .*got speed",
        ),
        (
            [*CALIBRATION, "Norcal"],
            ValueError,
            "CALIBRATION must be one of .*NorCal, TauNorm; got Norcal",
        ),
        ([*CALIBRATION, "NorCal"], ValueError, "no effect on StandardROIHeads: set"),
        (
            [*CALIBRATION, "NorCal", "MODEL.ROI_HEADS.NAME", "APAROIHeads"],
            ValueError,
            "no effect with MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH 0",
        ),
        (["TEST.ENGINE", "slow"], ValueError, "one of fast, lvis; got 'slow'"),
        (["TEST.COUNT_FROM", "nowhere"], ValueError, 'No dataset named "nowhere"'),
        (
            [
                *("TEST.AUG.ENABLED", True, "MODEL.META_ARCHITECTURE", "RetinaNet"),
                *("MODEL.RETINANET.NUM_CLASSES", 4),
            ],
            ValueError,
            "TEST.AUG.ENABLED works with",
        ),
    ],
)
def test_bad_configs(make_job, opts, error, message):
    with pytest.raises(error, match=message):
        check_job(make_job(*opts))


def test_good_evaluations(make_job):
    check_job(make_job("TEST.SUBSET", 3, "TEST.BEST_METRIC", "subset/segm/APr"))
    extra = ("TEST.EXTRA_METRICS", ["boundary", "fixed", "AR"])
    check_job(make_job(*extra, "TEST.BEST_METRIC", "boundary/APf_fixed"))
    groups = ("TEST.FREQUENCY_GROUPS", "few:3,many", "TEST.COUNT_FROM", "engine_train")
    check_job(make_job(*groups, *extra, "TEST.BEST_METRIC", "segm/ARfew@300"))


def test_subset_of_coco_format(make_job, data):
    metadata = MetadataCatalog.get("engine_check_coco")
    metadata.set(json_file=f"{data}/val.json", image_root=str(data), evaluator_type="coco")
    metadata.thing_classes = list("abcd")
    DatasetCatalog.register("engine_check_coco", list)
    options = ("DATASETS.TEST", ("engine_check_coco",), "TEST.SUBSET", 3)
    with pytest.raises(ValueError, match="add TEST.LONG_TAIL True"):
        check_job(make_job(*options))
    check_job(make_job(*options, "TEST.LONG_TAIL", True))
    DatasetCatalog.pop("engine_check_coco"), MetadataCatalog.pop("engine_check_coco")


def test_evaluation_alone(make_job, tmp_path):
    (tmp_path / "model.pth").touch()
    weights = ("MODEL.WEIGHTS", tmp_path / "model.pth")
    unused = ("DATASETS.TRAIN", ("nowhere",), "SOLVER.AMP.ENABLED", True)
    check_job(make_job(*weights, *unused), eval_only=True)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        check_job(make_job(), eval_only=True)
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        check_job(make_job(*weights, "DATASETS.TEST", ()), eval_only=True)


def test_last_checkpoint_that_is_gone(make_job, output):
    output.mkdir()
    (output / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(FileNotFoundError, match="model_0000009.pth"):
        check_job(make_job(), resume=True)
    (output / "model_0000009.pth").touch()
    check_job(make_job("MODEL.WEIGHTS", "not_looked_at.pth"), resume=True)


def test_json_that_is_cut_off(make_job, register, data, tmp_path):
    text = (data / "val.json").read_text()
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    register("engine_cut", tmp_path / "cut.json", data)
    with pytest.raises(ValueError, match="cut.json is cut off"):
        check_job(make_job("DATASETS.TEST", ("engine_cut",)))


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_record_that_points_nowhere(make_job, register, data, tmp_path, key):
    dataset = json.loads((data / "val.json").read_text())
    dataset["annotations"][3][key] = 12345
    (tmp_path / "bad.json").write_text(json.dumps(dataset))
    register(f"engine_bad_{key}", tmp_path / "bad.json", data)
    name = dataset["annotations"][3]["id"]
    with pytest.raises(ValueError, match=f"bad.json: annotation {name} .*12345"):
        check_job(make_job("DATASETS.TEST", (f"engine_bad_{key}",)))


def test_federated_loss_knows_the_image_counts(make_job, data, register):
    register("engine_fed", data / "train.json", data)
    check_job(make_job("DATASETS.TRAIN", ("engine_fed",), "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True))
    assert len(MetadataCatalog.get("engine_fed").class_image_count) == 4


def test_calibration_knows_the_image_counts(make_job, data, register):
    register("engine_calibrated", data / "train.json", data)
    options = (*CALIBRATION, "NorCal", "MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH", 0.5)
    options += ("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.WEIGHTS", __file__)
    with pytest.raises(ValueError, match="needs the image counts .* DATASETS.TRAIN is empty"):
        check_job(make_job(*options, "DATASETS.TRAIN", ()), eval_only=True)
    check_job(make_job(*options, "DATASETS.TRAIN", ("engine_calibrated",)), eval_only=True)
    assert len(MetadataCatalog.get("engine_calibrated").class_image_count) == 4


def test_fsdp_of_an_older_torch(make_job, monkeypatch):
    monkeypatch.delattr("torch.distributed.fsdp.fully_shard")
    check_job(make_job())
    with pytest.raises(ValueError, match="SOLVER.FSDP needs torch >= 2.6, got 2"):
        check_job(make_job("SOLVER.FSDP", True))


def test_the_solver_matters_for_training_only(make_job):
    job = make_job("SOLVER.IMS_PER_BATCH", 3, "SOLVER.ACCUMULATE", 2, "MODEL.WEIGHTS", __file__)
    check_job(job, eval_only=True)
