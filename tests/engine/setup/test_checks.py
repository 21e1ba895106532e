import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from apa_det.data import ensure_metadata, register_lvis_format
from apa_det.engine import Trainer, YamlJob, check_job, read_config
from apa_det.errors import MissingFileError, UserError

CALIBRATION = ("MODEL.ROI_BOX_HEAD.CALIBRATION",)


@pytest.fixture
def make_job(arguments, tiny_dataset):
    for split in ("train", "val"):
        register_lvis_format(f"tiny_{split}", f"{tiny_dataset}/{split}.json", str(tiny_dataset))

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
        (["DATASETS.TEST", ("tiny_vall",)], UserError, 'named "tiny_vall".*tiny_val'),
        (["DATASETS.TRAIN", ("nowhere",)], UserError, 'No dataset named "nowhere"'),
        (["DATASETS.TRAIN", ()], UserError, "DATASETS.TRAIN is empty"),
        (
            ["SOLVER.AMP.DTYPE", "bfloat16"],
            UserError,
            "DTYPE bfloat16 has no effect while SOLVER.AMP.ENABLED is False: set that to True, or",
        ),
        (["DATASETS.TEST", ("lvis_v1_val",)], MissingFileError, "Download"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 5], UserError, "tiny_train has 4 .*NUM_CLASSES is 5"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], UserError, "MODEL.RETINANET.NUM_CLASSES is 80"),
        (
            ["MODEL.META_ARCHITECTURE", "APAInjected"]
            + ["MODEL.APA.INJECT.META_ARCHITECTURE", "RetinaNet"],
            UserError,
            "MODEL.RETINANET.NUM_CLASSES is 80",
        ),
        (
            ["MODEL.APA.INJECT.LIKE", "replaced"],
            UserError,
            "no effect while MODEL.APA.INJECT.ENABLED is False: set it to True",
        ),
        (
            ["SOLVER.ACCUMULATE", 3],
            UserError,
            "BATCH must be a multiple of 3, got 2: .*1 processes .*3 equal parts",
        ),
        (
            ["SOLVER.ACCUMULATE", 2, "SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 24],
            UserError,
            "multiple of 16, .* 8 processes .SOLVER.REFERENCE_WORLD_SIZE.",
        ),
        (
            ["SOLVER.EMA.ENABLED", True, "TEST.PRECISE_BN.ENABLED", True],
            UserError,
            "set one of the two to False",
        ),
        (
            ["SOLVER.FSDP", True, "SOLVER.FIND_UNUSED_PARAMETERS", True],
            UserError,
            "does not work with SOLVER.FSDP",
        ),
        (["MODEL.WEIGHTS", "missing.pth"], MissingFileError, "MODEL.WEIGHTS is missing.pth"),
        (
            ["TEST.BEST_METRIC", "bbox/APx"],
            UserError,
            "METRIC must be one of bbox/AP.*bbox/APr.*segm/AP.*; got 'bbox/APx'",
        ),
        (["TEST.BEST_METRIC", "segm/AP", "MODEL.MASK_ON", False], UserError, "must be one of bbox"),
        (["TEST.BEST_METRIC", "bbox/AP", "DATASETS.TEST", ()], UserError, "there is no test set"),
        (
            ["TEST.BEST_METRIC", "bbox/AP", "TEST.SUBSET", 3],
            UserError,
            "must be one of subset/bbox/AP,",
        ),
        (
            ["TEST.BEST_METRIC", "bbox/APr", "TEST.FREQUENCY_GROUPS", "few:3,many"],
            UserError,
            "bbox/APfew",
        ),
        (["TEST.FREQUENCY_GROUPS", "few:3"], UserError, "and the last must not have one"),
        ([*CALIBRATION, "NorCal"], UserError, "no effect on StandardROIHeads: set"),
        (
            [*CALIBRATION, "NorCal", "MODEL.ROI_HEADS.NAME", "APAROIHeads"],
            UserError,
            "no effect with MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH 0",
        ),
        (["TEST.ENGINE", "slow"], UserError, "one of fast, lvis; got 'slow'"),
        (["TEST.COUNT_FROM", "nowhere"], UserError, 'No dataset named "nowhere"'),
        (
            [
                *("TEST.AUG.ENABLED", True, "MODEL.META_ARCHITECTURE", "RetinaNet"),
                *("MODEL.RETINANET.NUM_CLASSES", 4),
            ],
            UserError,
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
    groups = ("TEST.FREQUENCY_GROUPS", "few:3,many", "TEST.COUNT_FROM", "tiny_train")
    check_job(make_job(*groups, *extra, "TEST.BEST_METRIC", "segm/ARfew@300"))


def test_subset_of_coco_format(make_job, tiny_dataset):
    metadata = MetadataCatalog.get("engine_check_coco")
    metadata.set(
        json_file=f"{tiny_dataset}/val.json", image_root=str(tiny_dataset), evaluator_type="coco"
    )
    ensure_metadata("tiny_val")
    metadata.thing_classes = MetadataCatalog.get("tiny_val").thing_classes
    DatasetCatalog.register("engine_check_coco", list)
    options = ("DATASETS.TEST", ("engine_check_coco",), "TEST.SUBSET", 3)
    with pytest.raises(UserError, match="or set TEST.LONG_TAIL to True"):
        check_job(make_job(*options))
    check_job(make_job(*options, "TEST.LONG_TAIL", True))
    DatasetCatalog.pop("engine_check_coco"), MetadataCatalog.pop("engine_check_coco")


def test_evaluation_ignores_settings_of_training(make_job, tmp_path):
    torch.save({"model": {}}, tmp_path / "model.pth")
    weights = ("MODEL.WEIGHTS", tmp_path / "model.pth")
    unused = ("DATASETS.TRAIN", ("nowhere",), "SOLVER.AMP.ENABLED", True)
    check_job(make_job(*weights, *unused), eval_only=True)
    with pytest.raises(UserError, match="MODEL.WEIGHTS is empty"):
        check_job(make_job(), eval_only=True)
    with pytest.raises(UserError, match="DATASETS.TEST is empty"):
        check_job(make_job(*weights, "DATASETS.TEST", ()), eval_only=True)


def test_missing_last_checkpoint(make_job, output):
    output.mkdir()
    (output / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(MissingFileError, match="model_0000009.pth"):
        check_job(make_job(), resume=True)
    (output / "model_0000009.pth").touch()
    check_job(make_job("MODEL.WEIGHTS", "not_read.pth"), resume=True)


def test_truncated_json(make_job, register, tiny_dataset, tmp_path):
    text = (tiny_dataset / "val.json").read_text()
    (tmp_path / "cut.json").write_text(text[: len(text) // 2])
    register("engine_cut", tmp_path / "cut.json", tiny_dataset)
    with pytest.raises(UserError, match="cut.json is cut off"):
        check_job(make_job("DATASETS.TEST", ("engine_cut",)))


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_annotation_with_unknown_id(make_job, register, tiny_dataset, tmp_path, key):
    dataset = json.loads((tiny_dataset / "val.json").read_text())
    dataset["annotations"][3][key] = 12345
    (tmp_path / "bad.json").write_text(json.dumps(dataset))
    register(f"engine_bad_{key}", tmp_path / "bad.json", tiny_dataset)
    name = dataset["annotations"][3]["id"]
    with pytest.raises(UserError, match=f"bad.json: annotation {name}: {key} must be .*12345"):
        check_job(make_job("DATASETS.TEST", (f"engine_bad_{key}",)))


def test_federated_loss_reads_the_image_counts(make_job, tiny_dataset, register):
    register("engine_fed", tiny_dataset / "train.json", tiny_dataset)
    check_job(make_job("DATASETS.TRAIN", ("engine_fed",), "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True))
    assert len(MetadataCatalog.get("engine_fed").class_image_count) == 4


def test_calibration_reads_the_image_counts(make_job, tiny_dataset, register, tmp_path):
    weights = tmp_path / "model.pth"
    torch.save({"model": {}}, weights)
    register("engine_calibrated", tiny_dataset / "train.json", tiny_dataset)
    options = (*CALIBRATION, "NorCal", "MODEL.ROI_BOX_HEAD.CALIBRATION_STRENGTH", 0.5)
    options += ("MODEL.ROI_HEADS.NAME", "APAROIHeads", "MODEL.WEIGHTS", weights)
    with pytest.raises(UserError, match="needs the image counts .* DATASETS.TRAIN is empty"):
        check_job(make_job(*options, "DATASETS.TRAIN", ()), eval_only=True)
    check_job(make_job(*options, "DATASETS.TRAIN", ("engine_calibrated",)), eval_only=True)
    assert len(MetadataCatalog.get("engine_calibrated").class_image_count) == 4


def test_bfloat16_on_an_old_gpu(make_job, monkeypatch):
    options = ("MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    check_job(make_job(*options, "float16"))
    with pytest.raises(UserError, match="Tesla V100 has no bfloat16 arithmetic: set it to float16"):
        check_job(make_job(*options, "bfloat16"))


def test_fsdp_with_old_torch(make_job, monkeypatch):
    monkeypatch.delattr("torch.distributed.fsdp.fully_shard")
    check_job(make_job())
    with pytest.raises(UserError, match="SOLVER.FSDP needs torch >= 2.6, got 2"):
        check_job(make_job("SOLVER.FSDP", True))


def test_evaluation_ignores_the_solver(make_job, tmp_path):
    weights = tmp_path / "model.pth"
    torch.save({"model": {}}, weights)
    job = make_job("SOLVER.IMS_PER_BATCH", 3, "SOLVER.ACCUMULATE", 2, "MODEL.WEIGHTS", weights)
    check_job(job, eval_only=True)
