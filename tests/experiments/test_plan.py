"""Reading and checking the plan of a comparison."""

from pathlib import Path

import pytest

from apa_det.errors import MissingFileError, UserError
from apa_det.experiments import read_plan

DESCRIPTIONS = sorted((Path(__file__).parents[2] / "configs/Comparison").glob("[a-z]*.yaml"))
RELU = {"name": "ReLU, softmax"}
AGLU = {"name": "AGLU", "opts": ["MODEL.APA.ACTIVATION", "aglu"]}


def test_order_of_overrides(describe):
    keys = "SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY"
    second = {"name": "second", "opts": [keys[1], 0.2, keys[2], 0.2]}
    path = describe(RELU, second, overrides=[k for key in keys for k in (key, 0.1)])
    plan = read_plan("out", path, opts=[keys[2], "0.3"])
    values = [[getattr(row.job.config.SOLVER, k.split(".")[1]) for k in keys] for row in plan.rows]
    assert values == [[0.1, 0.1, 0.3], [0.1, 0.2, 0.3]]


def test_order_of_runs(describe):
    plan = read_plan("out", describe(RELU, AGLU, seeds=[4, 7]))
    assert [(run.row, run.seed) for run in plan.runs] == [
        ("ReLU, softmax", 4),
        ("AGLU", 4),
        ("ReLU, softmax", 7),
        ("AGLU", 7),
    ]
    run = plan.runs[2]
    assert Path(run.folder) == Path("out/runs/relu-softmax/seed7")
    assert (run.job.seed, Path(run.job.output_dir)) == (7, Path(run.folder))
    assert run.job.config.TEST.SAVE_PREDICTIONS


def test_row_that_evaluates_models_of_another_row(describe):
    calibrated = {"name": "NorCal", "model_of": "AGLU", "opts": ["TEST.DETECTIONS_PER_IMAGE", 7]}
    plan = read_plan("out", describe(RELU, AGLU, calibrated, seeds=[3]))
    run = plan.runs[2]
    assert run.trained_by == plan.runs[1] and run.num_iterations == 0
    config = run.job.config
    assert Path(config.MODEL.WEIGHTS) == Path("out/runs/aglu/seed3/model_final.pth")
    assert (config.MODEL.APA.ACTIVATION, config.TEST.DETECTIONS_PER_IMAGE) == ("aglu", 7)


def test_paths_are_relative_to_the_description(describe, config_file):
    path = describe(RELU, {"name": "near", "config": "near.yaml"})
    near = Path(path).with_name("near.yaml")
    near.write_text(f"_BASE_: {config_file}\nSOLVER: {{MOMENTUM: 0.5}}\n")
    plan = read_plan("out", path)
    assert [row.job.config.SOLVER.MOMENTUM for row in plan.rows] == [0.9, 0.5]


def test_config_files_are_rows(config_file):
    plan = read_plan("out", configs=[config_file], seeds=[1])
    assert [row.name for row in plan.rows] == ["base"]


def test_differences(describe):
    plan = read_plan("out", describe(RELU, AGLU, {"name": "same"}))
    assert plan.differences() == {"AGLU": {"MODEL.APA.ACTIVATION": ("relu", "aglu")}, "same": {}}


@pytest.mark.parametrize("path", DESCRIPTIONS, ids=lambda path: path.stem)
def test_published_comparisons(path):
    plan = read_plan("out", str(path))
    assert len(plan.rows) > 1 and len(plan.seeds) > 1
    plan.require_same_conditions()


@pytest.mark.parametrize(
    "key, value",
    [
        ("SOLVER.MAX_ITER", 3),
        ("SOLVER.STEPS", [1]),
        ("SOLVER.IMS_PER_BATCH", 4),
        ("SOLVER.WARMUP_FACTOR", 0.5),
        ("DATASETS.TRAIN", ["tiny_val"]),
        ("TEST.DETECTIONS_PER_IMAGE", 10),
        ("DATALOADER.NUM_WORKERS", 1),
    ],
)
def test_rows_must_share_data_schedule_and_evaluation(describe, key, value):
    plan = read_plan("out", describe(RELU, {"name": "other", "opts": [key, value]}))
    with pytest.raises(UserError, match=f'"ReLU, softmax" and "other" differ in {key}'):
        plan.check()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"seed": [0]}, "unknown key seed; expected base, overrides, rows, seeds"),
        ({"rows": []}, "rows must be a list"),
        ({"rows": ["relu"]}, "a row: unknown key relu; expected config, model_of, name, opts"),
        ({"rows": [{"opts": []}]}, "name of a row must be a string"),
        ({"rows": [{"name": 5}]}, "name of a row must be a string, got .*5"),
        (
            {"rows": [RELU, {"name": "relu - softmax"}]},
            'Rename the row "relu - softmax": its folder "relu-softmax"',
        ),
        ({"rows": [{"name": "κ"}]}, 'Rename the row "κ": it has no a-z'),
        ({"base": ""}, 'the row "ReLU, softmax" needs the path of a config file'),
        ({"base": 5}, "got 5"),
        ({"base": "none.yaml"}, 'row "ReLU, softmax": There is no config file'),
        ({"rows": [{"name": "a", "opts": ["SOLVER.LR", 1]}]}, 'row "a": .*no config key SOLVER.LR'),
        ({"rows": [{"name": "a", "opts": ["SEED"]}]}, 'row "a": .* must be KEY VALUE pairs'),
        ({"rows": [{"name": "a", "opts": {"SEED": 1}}]}, 'opts of the row "a" must be a list'),
        (
            {"rows": [{"name": "a", "model_of": "b"}, {"name": "b"}]},
            "model_of of the row \"a\" must be the name of a row above it that trains, got 'b'",
        ),
        (
            {"rows": [RELU, {"name": "a", "model_of": RELU["name"], "config": "x.yaml"}]},
            'the row "a" has both model_of and config',
        ),
        ({"overrides": "SEED 1"}, "overrides must be a list, got 'SEED 1'"),
        ({"seeds": 3}, "seeds must be a list, got 3"),
        ({"seeds": [1, 1]}, "seeds must be different integers"),
        ({"seeds": ["a"]}, "seeds must be different integers"),
        ({"seeds": []}, "seeds must be different integers"),
    ],
)
def test_errors_in_a_description(describe, content, message):
    with pytest.raises(UserError, match=message):
        read_plan("out", describe(*content.pop("rows", [RELU]), **content))


def test_description_is_not_a_mapping(tmp_path):
    (tmp_path / "list.yaml").write_text("[base, rows]")
    with pytest.raises(UserError, match="list.yaml must be .* keys and values, got a seq"):
        read_plan("out", str(tmp_path / "list.yaml"))


def test_nothing_to_compare():
    with pytest.raises(UserError, match="nothing to compare"):
        read_plan("out", seeds=[0])
    with pytest.raises(MissingFileError, match=r"no comparison file none\.yaml"):
        read_plan("out", "none.yaml")


def test_invalid_config(describe):
    row = {"name": "lost", "opts": ["MODEL.WEIGHTS", "lost.pth"]}
    with pytest.raises(UserError, match=r'The row "lost": MODEL\.WEIGHTS is lost\.pth'):
        read_plan("out", describe(RELU, row)).check()


def test_needs_one_test_set(describe):
    names = ["tiny_train", "tiny_val"]
    path = describe(RELU, AGLU, overrides=["DATASETS.TEST", names])
    with pytest.raises(UserError, match="must be one dataset with the long-tail evaluation"):
        read_plan("out", path).check()


def test_output_folder_was_moved(describe, tmp_path):
    """The model of a row that evaluates another row's is the same one, under another path."""
    calibrated = {"name": "again", "model_of": "AGLU"}
    plan = read_plan(str(tmp_path / "out"), describe(RELU, AGLU, calibrated))
    run = plan.runs[2]
    Path(run.folder).mkdir(parents=True)
    run.job.save_config()
    (tmp_path / "out").rename(tmp_path / "moved")
    read_plan(str(tmp_path / "moved"), describe(RELU, AGLU, calibrated)).check()
    calibrated["model_of"] = RELU["name"]
    with pytest.raises(UserError, match='was .* when the row "again" was started'):
        read_plan(str(tmp_path / "moved"), describe(RELU, AGLU, calibrated)).check()


def test_row_was_started_as_a_training(describe, tmp_path):
    row = {"name": "again"}
    run = read_plan(str(tmp_path), describe(RELU, row)).runs[1]
    Path(run.folder).mkdir(parents=True)
    run.job.save_config()
    with pytest.raises(UserError, match="MODEL.WEIGHTS was '' when the row \"again\" was started"):
        read_plan(str(tmp_path), describe(RELU, {**row, "model_of": RELU["name"]})).check()


def test_config_of_a_started_run_has_changed(describe, tmp_path):
    folder = str(tmp_path / "out")
    plan = read_plan(folder, describe(RELU, AGLU))
    run = plan.runs[1]
    Path(run.folder).mkdir(parents=True)
    run.job.save_config()
    plan.check()
    read_plan(
        f"{tmp_path}/./out", describe(RELU, AGLU)
    ).check()  # the spelling of the folder does not matter
    changed = {"name": "AGLU", "opts": ["MODEL.APA.ACTIVATION", "silu"]}
    message = "MODEL.APA.ACTIVATION was 'aglu' when the row \"AGLU\" was started .* is 'silu' now"
    with pytest.raises(UserError, match=message):
        read_plan(folder, describe(RELU, changed)).check()
