#!/usr/bin/env python3
"""Run the commands and the Python code of the documentation as printed, and the notebook.

    scripts/check_docs.py [PAGE ...]    e.g. README.md docs/training.md; default: all of them

A page runs in a folder like a checkout after `make quickstart`, but with a small dataset and few
iterations, and with the files of docs_data.py in place of the reader's. The tables below list all
other differences from what is printed.
"""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import docs_data

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "examples/quickstart.ipynb"
PAGES = ("README.md", "CONTRIBUTING.md", "MODEL_ZOO.md")

# Commands that are not run, by a pattern of their text, and why. tests/docs parses them: programs,
# flags, configs and overrides exist.
NOT_RUN = {
    r"pip install": "downloads packages",
    r"make (test|lint|docs)\b": "a step of .ci/run",
    r"make benchmark": "measures for minutes; .ci/run runs a small one",
    r"source \.venv/bin/activate": "all commands run in this environment",
    r"ln -s /data": "needs a second disk",
    r"(sbatch|srun|torchrun) ": "several GPUs or machines",
    r".*--num-gpus 8": "several GPUs or machines",
    r"apa-det (train|eval) .*configs/LVISv1": "LVIS itself",
    r"apa-det compare configs/Comparison/long_tail\.yaml": "dozens of trainings: hours",
    r"apa-det \S+ .*\bCONVERTED\b": "the authors' weights: a download",
    r"apa-det convert-checkpoint published\.pth": "the authors' weights: a download",
    r"apa-det convert-checkpoint --reverse": "a trained model of a published recipe",
    r"apa-det calibrate .*--thresholds": "a trained model, whose masks match objects",
}
# What is added to a command that is run, by a pattern of its text: fewer iterations and images, and
# no downloads. The first pattern that matches counts.
SHORT = "SOLVER.STEPS '()' SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2"
ADDED = {
    r"make quickstart": f'ARGS="{SHORT}0 TEST.SAVE_PREDICTIONS True"',
    r".* write-config|.*--write-config": "--weights none --num-gpus 0",
    r"apa-det eval|.*--eval-only": "",
    r"apa-det train --config-file \S+\.py ": "train.max_iter=2 dataloader.train.total_batch_size=2",
    r"apa-det train": SHORT,
    r"tools/train_net\.py": f"{SHORT} OUTPUT_DIR output/other",
    r"apa-det compare": f"--seeds 0 --opts {SHORT}",
    # After so few iterations, 100 detections have equal scores, whose order rounding changes
    r"apa-det export-model": "TEST.DETECTIONS_PER_IMAGE 5",
    r"apa-det pretrain": (
        "--epochs 1 --warmup-epochs 0 --train-size 32 --val-size 32 --batch-size 2 --workers 0"
    ),
}
# Placeholders in commands, and what is in their place
PLACEHOLDERS = {"CONFIG": "output/config.yaml"}
# Code of the notebook that is replaced
NOTEBOOK_CODE = {"ITERATIONS = 60": "ITERATIONS = 2"}
# Pages that tests/docs runs
TESTED = ("docs/other-projects.md", "docs/trackers.md")


class Command(NamedTuple):
    page: str
    text: str

    @property
    def line(self) -> str:
        """The text on one line, without a comment."""
        text = self.text.replace("\\\n", " ")
        for comment in re.finditer(r"(?:^|\s)#", text):
            if complete(text[: comment.start()]):  # not within quotes
                text = text[: comment.start()]
                break
        return re.sub(r"\s+", " ", text).strip()

    @property
    def reason(self) -> str | None:
        """Why it is not run."""
        return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, self.line)), None)

    @property
    def short(self) -> str:
        """The command as it is run."""
        added = next((text for pattern, text in ADDED.items() if re.match(pattern, self.line)), "")
        text = f"{self.line} {added}" if added else self.text
        for placeholder, value in PLACEHOLDERS.items():
            text = re.sub(rf"(?<!\S){placeholder}(?!\S)", value, text)
        return text


def pages() -> dict[str, str]:
    """Return the text of each page, by its path in the repository."""
    paths = [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").glob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def complete(command: str) -> bool:
    """Return whether a command ends where the text does: not within quotes, no backslash."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return not command.endswith("\\\n")


def commands(page: str, text: str) -> Iterator[Command]:
    """Yield the commands in the shell blocks, which backslashes and quotes may continue."""
    for block in blocks(text, "sh"):
        command = ""
        for line in block.splitlines(keepends=True):
            command += line
            if complete(command):
                if Command(page, command).line:
                    yield Command(page, command)
                command = ""
        assert not command, f"{page}: unfinished command: {command}"


def written(page_commands: list[Command]) -> set[str]:
    """Return the paths that the commands write, as their flags name them."""
    text = " ".join(command.line for command in page_commands)
    return set(re.findall(r"(?:--output|--write-config|--json) (\S+?)/?(?: |$)", text))


class Check:
    """The runs of all pages in folders of their own."""

    def __init__(self, folder: Path):
        self.template = folder / "template"
        self.folder = folder
        path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": sys.executable,  # of make
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, path)]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.failed = False

    def prepare(self) -> None:
        """Make the folder that each page starts with a copy of."""
        self.template.mkdir(parents=True)
        for path in ROOT.iterdir():
            if path.name[0] != "." and path.name not in ("datasets", "output", "site"):
                (self.template / path.name).symlink_to(path)
        data = f"prepare-dataset synthetic --output {docs_data.DATA} --num-train 24 --num-val 6"
        self.run("preparation", self.template, f"apa-det {data}")
        self.run("README.md", self.template, Command("README.md", "make quickstart").short)
        source = "import docs_data; docs_data.write_all()"
        script = [sys.executable, "-c", source]
        self.run("preparation", self.template, script, PYTHONPATH=str(ROOT / "scripts"))

    def check_page(self, page: str, text: str) -> None:
        """Run a page's commands in their order, and then its Python code."""
        todo = [c for c in commands(page, text) if not c.reason and c.line != "make quickstart"]
        code = "\n".join(blocks(text, "python"))
        if page in TESTED or not (todo or code):
            return
        folder = self.folder / page.replace("/", "_")
        shutil.copytree(self.template, folder, symlinks=True)
        docs_data.link(folder, self.template, written(todo))
        for name in re.findall(r"--import (\w+\.py)", text):
            registering = [block for block in blocks(text, "python") if ".register()" in block]
            (folder / name).write_text("\n".join(registering))
        for command in todo:
            self.run(page, folder, command.short)
            for path in written([command]):
                if not (folder / path).exists():
                    self.report(page, f"{path} was not written by: {command.line}")
        if code:
            (folder / "page.py").write_text(code)
            self.run(page, folder, [sys.executable, "page.py"])
        shutil.rmtree(folder)

    def check_notebook(self, name: str, trained: bool) -> None:
        """Run the notebook, with or without the checkpoint of the quickstart."""
        folder = self.folder / f"notebook_{trained}"
        shutil.copytree(self.template, folder, symlinks=True)
        if not trained:
            shutil.rmtree(folder / "output")
        notebook = json.loads((ROOT / name).read_text(encoding="utf-8"))
        text = json.dumps(notebook)
        for code, other in NOTEBOOK_CODE.items():
            assert code in text, f"{name} has no {code!r}"
            text = text.replace(code, other)
        (folder / "copy.ipynb").write_text(text)
        source = (
            "import nbformat, nbclient\n"
            "notebook = nbformat.read('copy.ipynb', 4)\n"
            "nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()"
        )
        label = f"{name} {'after' if trained else 'without'} the quickstart"
        self.run(label, folder, [sys.executable, "-c", source])
        shutil.rmtree(folder)

    def run(self, page: str, folder: Path, command: str | list[str], **environment: str) -> None:
        argv = ["bash", "-e", "-c", command] if isinstance(command, str) else command
        start = time.monotonic()
        result = subprocess.run(
            argv,
            cwd=folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        shown = "Python code"
        if isinstance(command, str):
            shown = re.sub(r"\s+", " ", command.replace("\\\n", ""))
        print(f"{time.monotonic() - start:5.0f} s  {page}: {shown[:150]}", flush=True)
        if result.returncode:
            self.report(page, f"{shown}\nexit status {result.returncode}\n{result.stdout[-3000:]}")

    def report(self, page: str, problem: str) -> None:
        self.failed = True
        print(f"FAILED  {page}: {problem}", flush=True)


def main(chosen: list[str]) -> int:
    texts = pages()
    unknown = [name for name in chosen if name not in (*texts, NOTEBOOK)]
    if unknown:
        print(f"{unknown[0]} is no page; pages are {', '.join(texts)} and {NOTEBOOK}.")
        return 2
    with TemporaryDirectory() as folder:
        check = Check(Path(folder))
        check.prepare()
        if check.failed:
            return 1
        with ThreadPoolExecutor(2) as pool:
            jobs = []
            if not chosen or NOTEBOOK in chosen:
                jobs += [pool.submit(check.check_notebook, NOTEBOOK, t) for t in (True, False)]
            for page, text in texts.items():
                if not chosen or page in chosen:
                    jobs.append(pool.submit(check.check_page, page, text))
            for job in jobs:
                job.result()
    found = [c for page, text in texts.items() for c in commands(page, text)]
    reasons = Counter(
        f"run by tests/docs: {command.page}" if command.page in TESTED else command.reason
        for command in found
    )
    print(f"Of {len(found)} commands on all pages, these are not run here:")
    for reason, number in reasons.items():
        if reason:
            print(f"{number:5}  {reason}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("FAILED" if check.failed else "All others ran,", end=" ")
    print(f"in {used.ru_utime + used.ru_stime:.0f} s of a CPU core.")
    return int(check.failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
