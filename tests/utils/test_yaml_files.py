"""Read yaml files as data; PyYAML and fvcore are the reference for valid files."""

import logging
import os
import socket
from pathlib import Path

import detectron2
import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from fvcore.common.config import CfgNode as FvcoreNode
from hypothesis import given, settings
from hypothesis import strategies as st

from apa_det import add_apa_config
from apa_det.errors import MissingFileError, UserError
from apa_det.utils.yaml_files import (
    has_lazy_calls,
    merge_overrides,
    merge_yaml_config,
    read_yaml,
    read_yaml_config,
)

ROOT = Path(__file__).parents[2]
CONFIGS = [p for p in ROOT.glob("configs/**/*.yaml") if p.parent.name != "Comparison"]
ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into a folder, the current one, and return the path of the last one."""
    monkeypatch.chdir(tmp_path)

    def write(**files):
        for name, text in files.items():
            path = tmp_path / f"{name}.yaml"
            path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def cfg():
    result = get_cfg()
    add_apa_config(result)
    return result


@pytest.mark.parametrize("path", [*CONFIGS, *ZOO.rglob("*.yaml")], ids=lambda path: path.name)
def test_configs_as_detectron2_reads_them(path, cfg):
    assert read_yaml_config(path) == CfgNode.load_yaml_with_base(str(path), allow_unsafe=True)
    expected = cfg.clone()
    expected.merge_from_file(str(path))
    merge_yaml_config(cfg, path)
    assert cfg == expected


def test_dumped_configs(write, cfg):
    cfg.DATASETS.TRAIN = ("a", "b")
    path = write(yacs=cfg.dump(), tuples=yaml.dump({"DATASETS": {"TRAIN": ("a", "b")}}))
    assert "python/tuple" in Path(path).read_text()
    for file in ("yacs.yaml", path):
        read = get_cfg()
        add_apa_config(read)
        merge_yaml_config(read, file)
        assert read.DATASETS.TRAIN == ("a", "b")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(content=st.dictionaries(st.text(), VALUES))
def test_any_data(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "file.yaml"
    text = yaml.safe_dump(content, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    try:
        assert read_yaml(path) == yaml.safe_load(text)
    except UserError as error:
        assert "control character" in str(error) or "a number" in str(error)


def test_inheritance_is_fvcores(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(a="A: {x: 1, y: 2}\nB: 1\nC: [1]\n", b="A: {x: 5, z: {u: 1}}\nC: [2]\n")
    for base in ("a.yaml", "~/a.yaml", tmp_path / "a.yaml", "[a.yaml, b.yaml]", "[]"):
        path = write(top=f"_BASE_: {base}\nA: {{y: 9}}\nD: {{}}\n")
        assert read_yaml_config(path) == FvcoreNode.load_yaml_with_base(path)


def test_old_configs_are_converted(write, caplog):
    path = write(old="MODEL: {WEIGHT: x.pkl}\n")
    expected, cfg = get_cfg(), get_cfg()
    expected.merge_from_file(path)
    with caplog.at_level(logging.WARNING):
        merge_yaml_config(cfg, path)
    assert cfg == expected and cfg.MODEL.WEIGHTS == "x.pkl"
    assert "config of version 1" in caplog.text


RUNS = "!!python/object/apply:os.system ['touch CANARY']"


@pytest.mark.parametrize(
    "value",
    [
        RUNS,
        "!!python/object/new:os.system ['touch CANARY']",
        "!!python/object/apply:subprocess.check_output [[touch, CANARY]]",
        "!!python/object/apply:eval ['1 + 1']",
        "!!python/name:os.system",
        "!!python/module:this",
        f"[1, {{a: {RUNS}}}]",
        f"{{? {RUNS} : 1}}",
        f"{{<<: {{a: {RUNS}}}}}",
        f"!!python/tuple [{RUNS}]",
    ],
)
def test_nothing_runs(value, write, tmp_path):
    text = f"VERSION: 2\nOUTPUT_DIR: {value}\n# _target_\n"
    write(bad=text, based="_BASE_: bad.yaml\n", bases="_BASE_: [bad.yaml]\n")
    for file in ("bad.yaml", "based.yaml", "bases.yaml"):
        for read in (read_yaml_config, lambda file: merge_yaml_config(get_cfg(), file)):
            with pytest.raises(UserError, match=r"bad.yaml, line 2: the tag !!python/.* runs code"):
                read(file)
    with pytest.raises(UserError, match="runs code"):
        read_yaml("bad.yaml")
    assert not has_lazy_calls("bad.yaml")
    assert not (tmp_path / "CANARY").exists()


def test_lazy_configs_are_code(write):
    write(lazy="model: {_target_: builtins.dict}\n", based="_BASE_: lazy.yaml\n")
    write(text="a: _target_ # _target_: 1\n")
    assert has_lazy_calls("lazy.yaml") and not has_lazy_calls("text.yaml")
    assert has_lazy_calls(write(escaped='"\\x5ftarget_": os.system\n'))
    for file in ("lazy.yaml", "based.yaml"):
        with pytest.raises(UserError, match="lazy.yaml has a key _target_.* LazyConfig"):
            read_yaml_config(file)


@pytest.mark.parametrize(
    "base, message",
    [
        ("http://127.0.0.1:9/base.yaml", "must be a local file, got http://127.0.0.1:9/base.yaml"),
        ("https://127.0.0.1:9/base.yaml", "must be a local file"),
        ("[a.yaml, 'detectron2://base.yaml']", "must be a local file"),
        ("file.yaml", "file.yaml inherits from itself"),
        ("./../FOLDER/file.yaml", "file.yaml inherits from itself"),
        ("b.yaml", "file.yaml inherits from itself"),
        ("none.yaml", "none.yaml, which does not exist"),
        ("/dev/zero", "/dev/zero, which does not exist"),
        ("''", "which does not exist"),
        ("", "must be a file or a list"),
        ("5", "must be a file or a list"),
        ("[1]", "must be a file or a list"),
        ("{a: 1}", "must be a file or a list"),
        ("c.yaml", "A has keys, but in _BASE_ it has a value"),
    ],
)
def test_bases(base, message, write, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # nothing connects
    write(a="A: {x: 1}\n", b="_BASE_: file.yaml\n", c="A: 1\n")
    base = base.replace("FOLDER", tmp_path.name)
    path = write(file=f"_BASE_: {base}\nA: {{x: 2}}\n")
    with pytest.raises(UserError, match=message):
        read_yaml_config(path)


def test_bases_are_limited(write):
    levels = {f"f{i}": f"_BASE_: [f{i + 1}.yaml, f{i + 1}.yaml]\n" for i in range(20)}
    write(**levels, f20="A: 1\n")
    with pytest.raises(UserError, match="at most 50 files"):
        read_yaml_config("f0.yaml")


DOUBLED = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(30))
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i + 1}: &a{i + 1}\n  <<: [*a{i}, *a{i}]\n" for i in range(30)
)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "file.yaml must be .* keys and values, got an empty file"),
        ("# nothing\n", "got an empty file"),
        ("[1, 2]", "got a sequence"),
        ("text", "got a scalar"),
        ("a: 1\n---\nb: 2\n", "invalid yaml: expected a single document"),
        ("a: [", "file.yaml: invalid yaml: .* at line 1, column 5"),
        ("a: *b", "undefined alias"),
        ("[1]: 1\n? {a: 1}\n: 2\n", "invalid yaml"),
        ("a: !!timestamp x", "invalid yaml"),
        ("a: 2024-13-01", "invalid yaml: month"),
        ("a: !!int ''", "invalid yaml"),
        ("a: !unknown 1", "invalid yaml: could not determine a constructor"),
        (b"a: \xff\xff\xff", "invalid yaml"),
        (b"a: \x1b[31m", "invalid yaml"),
        ('a:\n  - "\\e[31m"', "file.yaml, line 2: a control character"),
        ('"\\u202e": 1', "line 1: a control character"),
        ('a: "\\ud800"', "line 1: a control character"),
        ("a: " + "[" * 500 + "]" * 500, "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: &x [*x]", "nested too deeply, or contains itself"),
        ("a: &x\n  b: *x", "nested too deeply, or contains itself"),
        ("a: " + "1:" * 5000 + "1", "a number must have at most 100 characters"),
        ("a: " + "9" * 5000, "a number must have at most 100 characters"),
        (DOUBLED, "more than 60,000 values"),
        (MERGED, "more than 60,000 values"),
        ("a: '" + "x" * 500_000 + "'", "larger than 500,000 bytes"),
    ],
)
def test_invalid_files(text, message, write):
    path = write(file=text)
    for read in (read_yaml, read_yaml_config):
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_missing_file(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(MissingFileError):
            read_yaml(path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("VERSION: 3", "VERSION must be from 0 to 2, got 3"),
        ("VERSION: -9", "VERSION must be from 0 to 2"),
        ("VERSION: [1]", "VERSION must be from 0 to 2"),
        ("SOLVER: 5", "file.yaml: "),
        ("MODEL: 5", "file.yaml: "),
        ("MODEL: {DEVICE: {X: 1}}", "file.yaml: "),
        ("NONE: 1", "Non-existent config key: NONE"),
        ("1: 1", "file.yaml: "),
        ("OUTPUT_DIR: 2024-01-01", "OUTPUT_DIR"),
        ("SEED: '" + "-" * 10_000 + "1'", "file.yaml: "),
        ("SEED: '" + "(" * 10_000 + "'", "SEED"),
        ("SEED: __import__('os').system('touch CANARY')", "SEED"),
    ],
)
def test_invalid_values(text, message, write, cfg):
    path = write(file=text + "\n")
    with pytest.raises(UserError, match=message) as error:
        merge_yaml_config(cfg, path)
    assert len(str(error.value)) < 1000
    assert not os.path.exists("CANARY")


def test_overrides_are_literals(cfg, write, tmp_path):
    write(a="")
    merge_overrides(cfg, ["SEED", "3", "DATASETS.TRAIN", "('a',)", "OUTPUT_DIR", "1+x"], "Flags")
    assert (cfg.SEED, cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR) == (3, ("a",), "1+x")
    for opts in (
        ["SEED", "__import__('os').system('touch CANARY')"],
        ["SEED"],
        ["MODEL.DEVICE.x", 1],
        [1, 2],
        ["SEED", "-" * 10_000 + "1"],
        ["_BASE_", "x.yaml"],
    ):
        with pytest.raises(UserError, match="^Flags: "):
            merge_overrides(cfg, opts, "Flags")
    assert not (tmp_path / "CANARY").exists()
