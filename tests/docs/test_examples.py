"""The examples of README and docs run as printed; only trainings are made shorter."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import apa_det_cli
from apa_det.data import generate_dataset
from apa_det_cli import quickstart

ROOT = Path(__file__).parents[2]

# Commands of the README that are not run, by their first words
NOT_RUN = {
    ("make", "test"): "this test is a part of it",
    ("pip", "install"): "needs the network; the extras are checked in test_references.py",
    ("source", ".venv/bin/activate"): "the tests run in their environment",
}
# Appended to each training
SHORT = "SOLVER.MAX_ITER 2 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2".split()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The current folder: a checkout with the configs and a small dataset of the quickstart."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "configs").symlink_to(ROOT / "configs")
    generate_dataset(folder / quickstart.DATASET, num_train=24, num_val=4)
    before = set(DatasetCatalog)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        yield folder
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def readme_commands(pages, commands):
    return commands(pages["README.md"])


@pytest.fixture(scope="module")
def after_readme(checkout, readme_commands):
    """The checkout after the commands of the README, in their order."""
    for argv in readme_commands:
        if argv[:2] == ["make", "quickstart"]:
            argv = ["apa-det", "quickstart"]
        elif tuple(argv[:2]) in NOT_RUN:
            continue
        assert argv[0] == "apa-det", f"A command that cannot be run: {argv}"
        trains = argv[1] in ("train", "quickstart") and "--eval-only" not in argv
        try:
            status = apa_det_cli.main([*argv[1:], *(SHORT if trains else ())])
        except SystemExit as exit_:
            status = exit_.code
        assert status == 0, argv
    return checkout


@pytest.fixture
def script(checkout):
    """Runs Python in the checkout, as a process of its own; returns its output."""

    def run(*arguments, **kwargs) -> str:
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            **kwargs,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_readme_starts_with_quickstart_and_test(readme_commands):
    assert readme_commands[:2] == [["make", "quickstart"], ["make", "test"]]
    for start in NOT_RUN:
        assert any(tuple(argv[:2]) == start for argv in readme_commands), start


def test_readme_commands(after_readme):
    output = after_readme / "output"
    for name in (
        "model_final.pth",
        "val_predictions.png",
        "inference/lvis_instances_results.json",
        "baseline/model_final.pth",
        "report/report.html",
        "demo/detections.json",
        "my/metrics.json",
    ):
        assert (output / name).is_file(), name


def test_readme_python(pages, blocks, tmp_path):
    """In a script that is not ours."""
    (example,) = blocks(pages["README.md"], "python")
    statements = [line for line in example.splitlines() if line and " import " not in line]
    assert len(statements) <= 12 and "import apa_det" in example
    (tmp_path / "theirs.py").write_text(example)
    result = subprocess.run(
        [sys.executable, "theirs.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert re.match(r"tensor\(\[-?\d", result.stdout)


def test_python_of_docs(pages, blocks, after_readme, script):
    """Each page in one namespace; what extends apa_det is run by the next test."""
    sources = {
        name: "\n".join(blocks(text, "python"))
        for name, text in pages.items()
        if name not in ("README.md", "docs/extending.md", "docs/trackers.md")
    }
    run = "import json, sys\nfor page, source in json.load(sys.stdin).items():\n"
    run += "    exec(compile(source, page, 'exec'), {'__name__': page})\n"
    out = script("-c", run, input=json.dumps(sources))
    for expected in ("torch.Size([1, 1000])", "GeneralizedRCNN 240", "torch.Size([1, 512, 2, 2])"):
        assert expected in out
    assert (after_readme / "output/report/report.html").is_file()


def test_extending(pages, blocks, commands, checkout, script):
    page = pages["docs/extending.md"]
    (checkout / "my_components.py").write_text("\n".join(blocks(page, "python")))
    ((program, *argv),) = commands(page)
    assert program == "apa-det"
    script("-m", "apa_det_cli", *argv, *SHORT)
    log = (checkout / "output/my_components/log.txt").read_text()
    assert "Softplus" in log and "ScaleGate" in log and "Using training sampler Crowded" in log
    metrics = (checkout / "output/my_components/metrics.json").read_text()
    assert '"bbox/detections_per_image"' in metrics
