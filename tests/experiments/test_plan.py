"""What is compared, and what is refused before anything is trained."""

from pathlib import Path

import pytest

from apa_det.experiments import read_plan

DESCRIPTIONS = sorted((Path(__file__).parents[2] / "configs/Comparison").glob("[a-z]*.yaml"))
RELU = {"name": "ReLU, softmax"}
AGLU = {"name": "AGLU", "opts": ["MODEL.APA.ACTIVATION", "aglu"]}


def test_overrides_of_all_rows_come_before_those_of_a_row_and_of_the_command_line(describe):
    keys = "SOLVER.BASE_LR", "SOLVER.MOMENTUM", "SOLVER.WEIGHT_DECAY"
    own = {"name": "own", "opts": [keys[1], 0.2, keys[2], 0.2]}
    path = describe(RELU, own, overrides=[k for key in keys for k in (key, 0.1)])
    plan = read_plan("out", path, opts=[keys[2], "0.3"])
    found = [[getattr(row.job.config.SOLVER, k.split(".")[1]) for k in keys] for row in plan.rows]
    assert found == [[0.1, 0.1, 0.3], [0.1, 0.2, 0.3]]


def test_all_rows_of_a_seed_come_before_the_next_seed(describe):
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


def test_files_are_relative_to_the_description(describe, config_file):
    path = describe(RELU, {"name": "near", "config": "near.yaml"})
    near = Path(path).with_name("near.yaml")
    near.write_text(f"_BASE_: {config_file}\nSOLVER: {{MOMENTUM: 0.5}}\n")
    plan = read_plan("out", path)
    assert [row.job.config.SOLVER.MOMENTUM for row in plan.rows] == [0.9, 0.5]


def test_config_files_are_rows_too(config_file):
    plan = read_plan("out", configs=[config_file], seeds=[1])
    assert [row.name for row in plan.rows] == ["base"]


def test_what_rows_change_is_listed(describe):
    plan = read_plan("out", describe(RELU, AGLU, {"name": "same"}))
    assert plan.differences() == {"AGLU": {"MODEL.APA.ACTIVATION": ("relu", "aglu")}, "same": {}}


@pytest.mark.parametrize("path", DESCRIPTIONS, ids=lambda path: path.stem)
def test_the_projects_own_descriptions_compare_what_can_be_compared(path):
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
        ("DATASETS.TRAIN", ["comparison_val"]),
        ("TEST.DETECTIONS_PER_IMAGE", 10),
        ("DATALOADER.NUM_WORKERS", 1),
    ],
)
def test_rows_under_other_conditions_are_refused(describe, key, value):
    plan = read_plan("out", describe(RELU, {"name": "other", "opts": [key, value]}))
    with pytest.raises(ValueError, match=f'"ReLU, softmax" and "other" differ in {key}'):
        plan.check()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"seed": [0]}, "has the keys base, overrides, rows, seeds, and not seed"),
        ({"rows": []}, "needs a list of rows"),
        ({"rows": ["relu"]}, "a row has the keys config, name, opts, and not relu"),
        ({"rows": [{"opts": []}]}, "needs a name"),
        ({"rows": [{"name": 5}]}, "needs a name"),
        ({"rows": [RELU, {"name": "relu - softmax"}]}, "that of another row"),
        ({"rows": [{"name": "κ"}]}, "is empty"),
        ({"base": ""}, 'the row "ReLU, softmax" needs a config'),
        ({"base": "none.yaml"}, 'row "ReLU, softmax": There is no config file'),
        ({"rows": [{"name": "a", "opts": ["SOLVER.LR", 1]}]}, 'row "a": .*Non-existent key'),
        ({"rows": [{"name": "a", "opts": ["SEED"]}]}, 'row "a": .* odd length'),
        ({"rows": [{"name": "a", "opts": {"SEED": 1}}]}, 'row "a" needs opts as a list'),
        ({"overrides": "SEED 1"}, "needs overrides as a list"),
        ({"seeds": 3}, "seeds is a list"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": ["a"]}, "different whole numbers"),
        ({"seeds": []}, "different whole numbers"),
    ],
)
def test_what_is_wrong_in_a_description_is_named(describe, content, message):
    with pytest.raises(ValueError, match=message):
        read_plan("out", describe(*content.pop("rows", [RELU]), **content))


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="nothing to compare"):
        read_plan("out", seeds=[0])
    with pytest.raises(FileNotFoundError, match=r"no description none\.yaml"):
        read_plan("out", "none.yaml")


def test_a_config_that_cannot_be_trained_is_refused(describe):
    row = {"name": "lost", "opts": ["MODEL.WEIGHTS", "lost.pth"]}
    with pytest.raises(ValueError, match=r'The row "lost": MODEL\.WEIGHTS is lost\.pth'):
        read_plan("out", describe(RELU, row)).check()


def test_a_comparison_has_one_test_set(describe):
    names = ["comparison_train", "comparison_val"]
    path = describe(RELU, AGLU, overrides=["DATASETS.TEST", names])
    with pytest.raises(ValueError, match="needs one dataset with the long-tail evaluation"):
        read_plan("out", path).check()


def test_a_run_is_refused_whose_config_has_changed(describe, tmp_path):
    folder = str(tmp_path / "out")
    plan = read_plan(folder, describe(RELU, AGLU))
    run = plan.runs[1]
    Path(run.folder).mkdir(parents=True)
    run.job.save_config()
    plan.check()
    read_plan(f"{tmp_path}/./out", describe(RELU, AGLU)).check()  # the folder does not matter
    changed = {"name": "AGLU", "opts": ["MODEL.APA.ACTIVATION", "silu"]}
    message = "MODEL.APA.ACTIVATION 'aglu', and the row \"AGLU\" has 'silu' now: give the row"
    with pytest.raises(ValueError, match=message):
        read_plan(folder, describe(RELU, changed)).check()
