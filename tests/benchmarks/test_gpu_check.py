"""The check for GPUs, in its small form on the CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable
IN_A_PROCESS = "bandwidth"
SLOW = {"step", "inference", "training", "opcheck"}  # other tests do these on the CPU


@pytest.fixture
def gpu_check(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import common, gpu_check

    monkeypatch.setattr(common, "MIN_SECONDS", common.MIN_SECONDS)  # it is set for small forms
    file = tmp_path / "out.json"

    def run(*arguments):
        status = gpu_check.main([*arguments, "--device", "cpu", "--json", str(file)])
        return status, json.loads(file.read_text())

    run.sections, run.module = gpu_check.sections(), gpu_check
    return run


def test_small_form(gpu_check, capsys):
    names = [n for n in gpu_check.sections if n not in SLOW | {IN_A_PROCESS}]
    status, record = gpu_check("--in-process", "--only", *names, "--budget", "10000")
    assert status == 0, capsys.readouterr().out
    assert list(record["sections"]) == names
    for name, section in record["sections"].items():
        assert section["rows"] and not section["error"], name
        for row in section["rows"]:
            is_fine = row.get("ok") is True or "unit" in row or "skipped" in row["note"]
            assert is_fine or row["name"].startswith("FederatedLoss"), row  # it draws classes
    rows = {r["name"]: r for s in record["sections"].values() for r in s["rows"]}
    assert 0 < rows["aglu, eager, bfloat16, shared"]["value"] <= 1.6e-2
    assert rows["float16: length of the clipped step"]["ok"]


def test_wrong_kernels_and_crashes(gpu_check, monkeypatch, capsys):
    """A wrong gradient and an error are recorded, each in its section; others go on."""
    from benchmarks import gpu_correctness, gpu_speed

    aglu = gpu_correctness.FORMS["aglu"]
    slightly_wrong = lambda z, lambda_, kappa, backend=None: aglu(  # noqa: E731
        z, lambda_ * 1.001, kappa, backend=backend
    )
    monkeypatch.setitem(gpu_correctness.FORMS, "aglu", slightly_wrong)
    monkeypatch.setattr(gpu_correctness, "affine_aglu", None)
    monkeypatch.setattr(gpu_speed, "aglu", None)
    names = ("activation", "affine", "class_loss", "speed", "loss")
    status, record = gpu_check("--in-process", "--only", *names)
    assert status == 1
    assert record["failed"] == ["activation", "affine"]
    wrong = {r["name"] for r in record["sections"]["activation"]["rows"] if not r["ok"]}
    assert wrong and all(name.startswith("aglu") for name in wrong)
    for name in ("affine", "speed"):
        assert "'NoneType' object is not callable" in record["sections"][name]["error"]
    assert "Traceback" in capsys.readouterr().out
    assert not record["sections"]["loss"]["error"]


def test_processes_and_budget(gpu_check, monkeypatch, tmp_path):
    """A section that dies, or takes too long, is recorded too."""
    status, record = gpu_check("--only", IN_A_PROCESS, "--budget", "300")
    assert status == 0
    assert record["sections"][IN_A_PROCESS]["rows"][0]["value"] > 0
    status, record = gpu_check("--only", "activation", "--budget", "0")
    assert record["sections"]["activation"]["skipped"]
    for code, error in (("os.abort()", "Exit status -6"), ("time.sleep(9)", "longer than 0 s")):
        monkeypatch.setattr(gpu_check.module.sys, "executable", _program(tmp_path, code))
        args = gpu_check.module.parse(["--device", "cpu"])
        args.seconds = 0.3 if "sleep" in code else 60
        assert error in gpu_check.module.run_process("activation", args)["error"]


def _program(folder, code):
    """Write a program that ignores its arguments and runs code."""
    file = folder / "program"
    file.write_text(f"#!/bin/sh\nexec {PYTHON} -S -c 'import os, time; {code}'\n")
    file.chmod(0o755)
    return str(file)


def test_reference_is_the_definition():
    """The float64 reference equals the formula of the paper, where that does not overflow."""
    from benchmarks.gpu_correctness import formula

    z = torch.linspace(-5, 5, 21).double()
    lambda_, kappa = torch.tensor(0.7).double(), torch.tensor(1.2).double()
    eta = (lambda_ * torch.exp(-kappa * z) + 1) ** (-1 / lambda_)
    for form, expected in (
        ("apa", eta),
        ("aglu", z * eta),
        ("log_apa", eta.log()),
        ("logit_apa", (eta / (1 - eta)).log()),
    ):
        torch.testing.assert_close(formula(form, z, lambda_, kappa), expected)
