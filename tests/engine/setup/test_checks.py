import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from apa_det import add_apa_config
from apa_det.data import register_lvis_format
from apa_det.engine import check_config

CALIBRATION = ("MODEL.ROI_BOX_HEAD.CALIBRATION",)


@pytest.fixture
def make_cfg(arguments, data):
    for split in ("train", "val"):
        register_lvis_format(f"engine_{split}", f"{data}/{split}.json", str(data))

    def make(*opts):
        cfg = get_cfg()
        add_apa_config(cfg)
        cfg.merge_from_file(arguments().config_file)
        cfg.merge_from_list([str(opt) for opt in opts])
        return cfg

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


def test_good_configs(make_cfg):
    check_config(make_cfg())
    check_config(make_cfg("TEST.BEST_METRIC", "segm/APr", "MODEL.WEIGHTS", "detectron2://x.pkl"))
    check_config(make_cfg("DATASETS.TEST", ()))


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
            "no effect where .* is GeneralizedRCNN: set that to APAInjected",
        ),
        (["SOLVER.ACCUMULATE", 0], ValueError, "ACCUMULATE is at least 1, not 0"),
        (["SOLVER.ACCUMULATE", 3], ValueError, "BATCH is 2, .*1 processes .*3 parts .*tiple of 3"),
        (
            ["SOLVER.ACCUMULATE", 2, "SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 24],
            ValueError,
            "8 processes of SOLVER.REFERENCE_WORLD_SIZE .* make it a multiple of 16",
        ),
        (["SOLVER.EMA.DECAY", 1.0], ValueError, "DECAY is from 0 to below 1, not 1.0"),
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
        (["TEST.BEST_METRIC", "bbox/APx"], ValueError, "bbox/APx is no metric.*bbox/APr.*segm/AP"),
        (["TEST.BEST_METRIC", "segm/AP", "MODEL.MASK_ON", False], ValueError, "choose one of bbox"),
        (["TEST.BEST_METRIC", "bbox/AP", "DATASETS.TEST", ()], ValueError, "TEST is empty"),
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
        (["TEST.EXTRA_METRICS", ["speed"]], ValueError, "EXTRA_METRICS must be among AR, .*got speed"),
        ([*CALIBRATION, "Norcal"], ValueError, "CALIBRATION Norcal is none of .*NorCal, TauNorm"),
        ([*CALIBRATION, "NorCal"], ValueError, "no effect on StandardROIHeads: set"),
        (
            [*CALIBRATION, "NorCal", "MODEL.ROI_HEADS.NAME", "APAROIHeads"],
            ValueError,
            "no effect while MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH is 0",
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
def test_bad_configs(make_cfg, opts, error, message):
    with pytest.raises(error, match=message):
        check_config(make_cfg(*opts))


def test_good_evaluations(make_cfg):
    check_config(make_cfg("TEST.SUBSET", 3, "TEST.BEST_METRIC", "subset/segm/APr"))
    extra = ("TEST.EXTRA_METRICS", ["boundary", "fixed", "AR"])
    check_config(make_cfg(*extra, "TEST.BEST_METRIC", "boundary/APf_fixed"))
    groups = ("TEST.FREQUENCY_GROUPS", "few:3,many", "TEST.COUNT_FROM", "engine_train")
    check_config(make_cfg(*groups, *extra, "TEST.BEST_METRIC", "segm/ARfew@300"))


def test_subset_of_coco_format(make_cfg, data):
    metadata = MetadataCatalog.get("engine_check_coco")
    metadata.set(json_file=f"{data}/val.json", image_root=str(data), evaluator_type="coco")
    metadata.thing_classes = list("abcd")
    DatasetCatalog.register("engine_check_coco", list)
    options = ("DATASETS.TEST", ("engine_check_coco",), "TEST.SUBSET", 3)
    with pytest.raises(ValueError, match="add TEST.LONG_TAIL True"):
        check_config(make_cfg(*options))
    check_config(make_cfg(*options, "TEST.LONG_TAIL", True))
    DatasetCatalog.pop("engine_check_coco"), MetadataCatalog.pop("engine_check_coco")


def test_evaluation_alone(make_cfg, tmp_path):
    (tmp_path / "model.pth").touch()
    weights = ("MODEL.WEIGHTS", tmp_path / "model.pth")
    unused = ("DATASETS.TRAIN", ("nowhere",), "SOLVER.AMP.ENABLED", True)
    check_config(make_cfg(*weights, *unused), eval_only=True)
    with pytest.raises(ValueError, match="--eval-only needs a checkpoint"):
        check_config(make_cfg(), eval_only=True)
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        check_config(make_cfg(*weights, "DATASETS.TEST", ()), eval_only=True)


def test_last_checkpoint_that_is_gone(make_cfg, output):
    output.mkdir()
    (output / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(FileNotFoundError, match="model_0000009.pth"):
        check_config(make_cfg(), resume=True)
    (output / "model_0000009.pth").touch()
    check_config(make_cfg("MODEL.WEIGHTS", "not_looked_at.pth"), resume=True)


def test_json_that_is_cut_off(make_cfg, register, data, tmp_path):
    text = (data / "val.json").read_text()
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    register("engine_cut", tmp_path / "cut.json", data)
    with pytest.raises(ValueError, match="cut.json is cut off"):
        check_config(make_cfg("DATASETS.TEST", ("engine_cut",)))


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_record_that_points_nowhere(make_cfg, register, data, tmp_path, key):
    dataset = json.loads((data / "val.json").read_text())
    dataset["annotations"][3][key] = 12345
    (tmp_path / "bad.json").write_text(json.dumps(dataset))
    register(f"engine_bad_{key}", tmp_path / "bad.json", data)
    name = dataset["annotations"][3]["id"]
    with pytest.raises(ValueError, match=f"bad.json: annotation {name} .*12345"):
        check_config(make_cfg("DATASETS.TEST", (f"engine_bad_{key}",)))


def test_federated_loss_knows_the_image_counts(make_cfg, data, register):
    register("engine_fed", data / "train.json", data)
    check_config(
        make_cfg("DATASETS.TRAIN", ("engine_fed",), "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True)
    )
    assert len(MetadataCatalog.get("engine_fed").class_image_count) == 4


def test_calibration_knows_the_image_counts(make_cfg, data, register):
    register("engine_calibrated", data / "train.json", data)
    options = (*CALIBRATION, "NorCal", "MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH", 0.5)
    options += ("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.WEIGHTS", "x://y")
    with pytest.raises(ValueError, match="goes by the image counts .* DATASETS.TRAIN is empty"):
        check_config(make_cfg(*options, "DATASETS.TRAIN", ()), eval_only=True)
    check_config(make_cfg(*options, "DATASETS.TRAIN", ("engine_calibrated",)), eval_only=True)
    assert len(MetadataCatalog.get("engine_calibrated").class_image_count) == 4


def test_fsdp_of_an_older_torch(make_cfg, monkeypatch):
    monkeypatch.delattr("torch.distributed.fsdp.fully_shard")
    check_config(make_cfg())
    with pytest.raises(ValueError, match="SOLVER.FSDP needs torch 2.6 or later, and this is 2"):
        check_config(make_cfg("SOLVER.FSDP", True))


def test_the_solver_matters_for_training_only(make_cfg):
    cfg = make_cfg("SOLVER.IMS_PER_BATCH", 3, "SOLVER.ACCUMULATE", 2, "MODEL.WEIGHTS", "x://y")
    check_config(cfg, eval_only=True)
