import numpy as np
import pytest

from apa_det.data.frequency import FrequencyGroups
from apa_det.engine.figures.results_figure import draw_results
from apa_det.engine.training_history import TrainingHistory
from apa_det.utils.plotting import group_color


def history(num_points, prefixes=("bbox/",), groups="rcf", **more):
    scalars = {}
    for i in range(1, num_points + 1):
        values = {"lr": 0.1, "total_loss": 5.0 / i, "loss_cls": 3.0 / i, "loss_mask": 2.0 / i}
        for prefix in prefixes:
            values |= {f"{prefix}AP{name}": float(i) for name in ("", *groups)}
        scalars[10 * i] = {**values, **more}
    return TrainingHistory(scalars)


def draw(history, groups=None):
    figure = draw_results(history, groups or FrequencyGroups.lvis())
    figure.canvas.draw()
    return {axis.get_title(): axis for axis in figure.axes if axis.axison}


@pytest.mark.parametrize("num_points", [1, 2, 3, 70, 4000])
def test_no_line_through_two_points(num_points):
    panels = draw(history(num_points))
    assert list(panels) == ["training losses", "learning rate", "AP of boxes"]
    for axis in panels.values():
        assert axis.get_xlabel() == "iteration" and axis.get_ylabel()
        for line in axis.lines:
            assert (line.get_linestyle() == "None") == (num_points < 3)
            assert (line.get_marker() == "o") == (num_points <= 60)


def test_values_and_colors():
    axis = draw(history(5, ["bbox/", "segm/"]))["AP of masks"]
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines) == ["AP: all classes", "APr: rare", "APc: common", "APf: frequent"]
    assert lines["APr: rare"].get_color() == group_color(0)
    x, y = lines["APr: rare"].get_data()
    assert [*x] == [10, 20, 30, 40, 50] and [*y] == [1, 2, 3, 4, 5]
    assert axis.get_legend() is not None


def test_running_mean_keeps_a_constant():
    lines = draw(history(500, total_loss=2.0))["training losses"].lines
    total = next(line for line in lines if line.get_label() == "total")
    assert np.allclose(total.get_ydata(), 2.0)


def test_subset_and_whole_test_set():
    subset = history(4, ["subset/bbox/"])
    subset.scalars[40] |= {"bbox/AP": 7.0, "bbox/APr": 6.0}
    (title, axis) = list(draw(subset).items())[-1]
    assert title == "AP of boxes, on a subset of the images"
    diamonds = [line for line in axis.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert [line.get_ydata()[0] for line in diamonds] == [7.0, 6.0]


def test_custom_groups_several_sets_and_cascades():
    groups = FrequencyGroups.parse("few:5,$many$")
    stages = {f"loss_box_reg_stage{i}": 1.0 for i in range(3)}
    values = history(3, ["a/bbox/", "b/bbox/", "b/segm_TTA/"], ["few", "$many$"], **stages)
    panels = draw(values, groups)
    assert [*panels][2:] == [
        "AP of boxes on a",
        "AP of boxes on b",
        "AP of masks with test-time augmentation on b",
    ]
    assert len(panels["AP of boxes on a"].lines) == 3
    losses = {line.get_label(): line for line in panels["training losses"].lines}
    assert [*losses["box_reg, 3 stages"].get_ydata()] == [3.0, 3.0, 3.0]


def test_without_evaluations_or_anything():
    assert [*draw(TrainingHistory({20: {"lr": 0.0, "total_loss": 0.0}}))] == [
        "training losses",
        "learning rate",
    ]
    assert draw_results(TrainingHistory({}), FrequencyGroups.lvis()) is None
    assert draw_results(TrainingHistory({1: {"apa/a/lambda": 1.0}}), FrequencyGroups.lvis()) is None
