"""Any change of one value is refused with its record, or evaluated as by lvis-api."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPT = str(Path(__file__).parents[2] / "scripts/fuzz_records.py")
FUZZ = runpy.run_path(SCRIPT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


@pytest.mark.parametrize("part", FUZZ["PARTS"])
@settings(max_examples=150, deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_mutation_is_refused_or_evaluated_as_by_lvis_api(part, folder, rng):
    FUZZ["check"](part, rng, folder)  # raises an AssertionError otherwise


def test_unchanged_files_have_the_metrics_of_lvis_api(folder, monkeypatch):
    monkeypatch.setitem(FUZZ["check"].__globals__, "mutate", lambda records, rng: (0, "nothing"))
    for seed in range(3):
        for part in FUZZ["PARTS"]:
            assert FUZZ["check"](part, FUZZ["random"].Random(seed), folder) == "accepted"


def test_script():
    done = subprocess.run(
        [sys.executable, SCRIPT, "30", "--processes", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    outcomes = [line.split() for line in done.stdout.splitlines()]
    assert sum(int(number) for number, *_ in outcomes) == 30
    assert {outcome[-1] for outcome in outcomes} == {"accepted", "refused"}
