"""Modules of the user: --import."""

import pickle
import sys

import pytest

from apa_det.errors import MissingFileError, UserError
from apa_det.utils.user_modules import import_modules


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Leaves sys.path and sys.modules as they were."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("user_"):
            del sys.modules[name]


def test_dotted_name(tmp_path, monkeypatch):
    """In the current folder, which tools are not started from."""
    (tmp_path / "user_package").mkdir()
    (tmp_path / "user_package/__init__.py").touch()
    (tmp_path / "user_package/losses.py").write_text("VALUE = 1")
    monkeypatch.chdir(tmp_path)
    import_modules(["user_package.losses"])
    assert sys.modules["user_package.losses"].VALUE == 1


def test_file(tmp_path, monkeypatch):
    """Once, under its stem, with its neighbors; its classes can be pickled."""
    (tmp_path / "user_neighbor.py").write_text("COUNT = []")
    path = tmp_path / "user_module.py"
    path.write_text("import user_neighbor\nuser_neighbor.COUNT.append(1)\nclass A:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    import_modules([str(path), "user_module.py", str(path)])
    module = sys.modules["user_module"]
    assert module.user_neighbor.COUNT == [1]
    assert type(pickle.loads(pickle.dumps(module.A()))) is module.A


def test_errors(tmp_path):
    with pytest.raises(MissingFileError, match="There is no file .*user_none.py"):
        import_modules(["user_none.py"])
    with pytest.raises(UserError, match="Cannot import user_none.a: No module named 'user_none'"):
        import_modules(["user_none.a"])
    (tmp_path / "user_module.py").write_text("import user_none")
    for _ in range(2):  # nothing is left of the first attempt
        with pytest.raises(UserError, match="user_module.py: No module named 'user_none'"):
            import_modules([str(tmp_path / "user_module.py")])
    (tmp_path / "json.py").touch()
    with pytest.raises(UserError, match="json.py: another module is named json. Rename the file"):
        import_modules([str(tmp_path / "json.py")])
    (tmp_path / "user_bug.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):  # the user needs its traceback
        import_modules([str(tmp_path / "user_bug.py")])


def test_a_tool_that_cannot_import(tool, capsys):
    flags = ["--gt", "a", "--results", "b", "--import", "user_none"]
    assert tool("evaluate_predictions", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate_predictions.py: Cannot import user_none: ")
    assert error.count("\n") == 1


USER_HEAD = """
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from apa_det.modeling import APAFastRCNNConvFCHead

@ROI_BOX_HEAD_REGISTRY.register()
class UserHead(APAFastRCNNConvFCHead):
    pass
"""


def test_runs_of_a_comparison_import_them_too(run, quickstart, tmp_path):
    (tmp_path / "user_head.py").write_text(USER_HEAD)
    output = tmp_path / "output"
    flags = ["--output", output, "--config-file", quickstart.yaml, "--seeds", "0"]
    flags += ["--resamples", "2", "--import", tmp_path / "user_head.py"]
    opts = ["--opts", *quickstart.opts, "MODEL.ROI_BOX_HEAD.NAME", "UserHead"]
    for _ in range(2):  # the second time, the kept run is found to be of the same config
        status, _, err = run("tools/compare.py", *flags, *opts)
        assert status == 0, err
    assert len(list(output.rglob("result.json"))) == 1


def test_evaluation_with_a_module(run, quickstart, tmp_path):
    """By its dotted name; the config file needs an extension that tells its format."""
    (tmp_path / "user_head.py").write_text(USER_HEAD)
    (tmp_path / "config.txt").touch()
    status, _, err = run(
        "-m",
        "apa_det_cli",
        "eval",
        "--import",
        "user_head",
        "--config-file",
        tmp_path / "config.txt",
        path=[tmp_path],
    )
    assert status == 2 and "config file must end in .yaml, .yml or .py" in err
