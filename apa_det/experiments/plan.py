"""What a comparison trains: the config of every row, checked to be comparable, and its runs."""

import logging
import os
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import yaml
from detectron2.config import CfgNode

from ..engine import check_config, read_config
from ..engine.evaluation import is_long_tail
from ..engine.setup.yaml import errors_name, register_datasets

__all__ = ["Plan", "Row", "Run", "read_plan"]

logger = logging.getLogger(__name__)

# What all rows must have the same, or the comparison says nothing: keys, or how they begin.
_SAME = (
    "DATASETS.",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "SOLVER.WARMUP_",
    "SOLVER.LR_SCHEDULER_NAME",
    "SOLVER.GAMMA",
    "SOLVER.NUM_DECAYS",
    "SOLVER.RESCALE_INTERVAL",
    "SOLVER.BASE_LR_END",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "TEST.AUG.",
    "TEST.COUNT_FROM",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.ENGINE",
    "TEST.EVAL_PERIOD",
    "TEST.FREQUENCY_GROUPS",
    "TEST.LONG_TAIL",
    "TEST.SUBSET",
)
# What says nothing of the model or the conditions.
_OF_A_RUN = ("OUTPUT_DIR", "SEED")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    cfg: CfgNode  # without the seed and the folder of a run


@dataclass(frozen=True)
class Run:
    """One training, in a folder of its own."""

    row: str
    seed: int
    folder: str
    cfg: CfgNode

    @property
    def config_file(self) -> str:
        return os.path.join(self.folder, "config.yaml")

    @property
    def result_file(self) -> str:
        """It is written last."""
        return os.path.join(self.folder, "result.json")

    @property
    def predictions_file(self) -> str:
        return os.path.join(self.folder, "predictions.json.gz")

    @property
    def is_done(self) -> bool:
        return os.path.isfile(self.result_file)

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return os.path.isfile(os.path.join(self.folder, "last_checkpoint"))


@dataclass(frozen=True)
class Plan:
    """Rows and seeds of a comparison, and where its runs are."""

    rows: list[Row]
    seeds: list[int]
    output_dir: str

    @cached_property
    def runs(self) -> list[Run]:
        """All rows of the first seed, then those of the next: what is stopped is balanced."""
        return [self._run(row, seed) for seed in self.seeds for row in self.rows]

    def _run(self, row: Row, seed: int) -> Run:
        folder = os.path.join(self.output_dir, "runs", _slug(row.name), f"seed{seed}")
        cfg = row.cfg.clone()
        cfg.SEED, cfg.OUTPUT_DIR = seed, folder
        cfg.freeze()
        return Run(row.name, seed, folder, cfg)

    def differences(self) -> dict[str, dict[str, tuple]]:
        """For each row but the first, the keys whose values differ: (the first row's, its own)."""
        first, *others = self.rows
        return {row.name: _differences(first.cfg, row.cfg) for row in others}

    def check(self) -> None:
        """Raise an error unless all rows can be trained, and compared.

        Raises:
            FileNotFoundError, ValueError: rows differ in what must be the same, a config cannot
                work (see :func:`apa_det.engine.check_config`), or a kept config is another one.
        """
        self.require_same_conditions()
        cfg = self.rows[0].cfg
        register_datasets(cfg.DATASETS.LVIS_FORMAT, "DATASETS.LVIS_FORMAT")
        for row in self.rows:
            with errors_name(f'The row "{row.name}"'):
                check_config(row.cfg)
        if len(cfg.DATASETS.TEST) != 1 or not is_long_tail(cfg, cfg.DATASETS.TEST[0]):
            raise ValueError(
                f"DATASETS.TEST is {tuple(cfg.DATASETS.TEST)}: a comparison needs one dataset, of "
                "LVIS format, or of COCO format with TEST.LONG_TAIL True."
            )
        for run in self.runs:
            _require_same_config(run)

    def require_same_conditions(self) -> None:
        """Raise a ValueError where rows differ in data, schedule or evaluation."""
        for name, keys in self.differences().items():
            for key, (theirs, own) in keys.items():
                if key.startswith(_SAME):
                    raise ValueError(
                        f'The rows "{self.rows[0].name}" and "{name}" differ in {key}, {theirs!r} '
                        f"and {own!r}: set it to one value for all, as a comparison needs the "
                        "same data, schedule and evaluation."
                    )


def read_plan(
    output_dir: str,
    description: str | None = None,
    configs: Sequence[str] = (),
    *,
    seeds: Sequence[int] = (),
    opts: Sequence[str] = (),
) -> Plan:
    """Read what to compare.

    Args:
        output_dir: the folder of the comparison.
        description: a yaml file with ``base``, the config file of all rows; ``overrides``, a list
            ``[KEY, VALUE, ...]`` for all rows; ``seeds``, a list; and ``rows``, each with a
            ``name``, and, as far as it needs them, ``config``, a config file in place of ``base``,
            and ``opts``, overrides of its own. Files are relative to its folder. The first row is
            the one that others are held against.
        configs: config files, each a row more.
        seeds: in place of those of the description.
        opts: overrides for all rows, after those of the description.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or something in it is wrong.
    """
    content = {"rows": []} if description is None else _read_description(description)
    rows = [_described_row(description, content, row, opts) for row in content["rows"]]
    rows += [Row(os.path.splitext(os.path.basename(c))[0], _config(c, opts)) for c in configs]
    seeds = list(seeds or content.get("seeds", ()))
    if not rows:
        raise ValueError("There is nothing to compare: give a description, or --configs.")
    if not seeds or len(set(seeds)) < len(seeds) or any(type(s) is not int or s < 0 for s in seeds):
        raise ValueError(f"The seeds are {seeds}: give different whole numbers from 0.")
    slugs = [_slug(row.name) for row in rows]
    for i, slug in enumerate(slugs):
        if slug in slugs[:i] or not slug:
            raise ValueError(
                f'The name "{rows[i].name}" of a row gives its folder the name "{slug}", which is '
                f"{'that of another row' if slug else 'empty'}: give it another name."
            )
    return Plan(rows, seeds, output_dir)


def _read_description(path: str) -> dict:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no description {path} of a comparison.")
    with errors_name(path), open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    _require_keys(path, content, {"base", "overrides", "seeds", "rows"})
    if not isinstance(content.get("rows"), list) or not content["rows"]:
        raise ValueError(f"{path} needs a list of rows, each with a name.")
    if not isinstance(content.get("seeds", []), list):
        raise ValueError(f"{path}: seeds is a list of whole numbers, not {content['seeds']!r}.")
    if not isinstance(content.get("overrides", []), list):
        raise ValueError(f"{path} needs overrides as a list [KEY, VALUE, ...].")
    for row in content["rows"]:
        _require_keys(f"{path}, a row", row, {"name", "config", "opts"})
        if not isinstance(row.get("name"), str):
            raise ValueError(f"{path}: the row {row!r} needs a name.")
        if not isinstance(row.get("opts", []), list):
            raise ValueError(f'{path}: the row "{row["name"]}" needs opts as a list, as overrides.')
        if not row.get("config", content.get("base")):
            raise ValueError(
                f'{path}: there is no base, so the row "{row["name"]}" needs a config.'
            )
    return content


def _require_keys(what: str, content, known: set[str]) -> None:
    keys = content.keys() if isinstance(content, dict) else {content}
    if keys - known:
        wrong = ", ".join(map(str, keys - known))
        raise ValueError(f"{what} has the keys {', '.join(sorted(known))}, and not {wrong}.")


def _described_row(path: str, content: dict, row: dict, opts: Sequence[str]) -> Row:
    file = row.get("config", content.get("base"))
    file = os.path.join(os.path.dirname(path), file)
    own = [*content.get("overrides", ()), *row.get("opts", ()), *opts]
    with errors_name(f'{path}, row "{row["name"]}"'):
        return Row(row["name"], _config(file, own))


def _config(file: str, opts: Sequence) -> CfgNode:
    cfg = read_config(Namespace(config_file=file, opts=[]))
    cfg.merge_from_list(list(opts))
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.TEST.SAVE_PREDICTIONS = True  # the intervals need them
    return cfg


def _require_same_config(run: Run) -> None:
    """Raise a ValueError where the run was begun with another config than it has now."""
    if not os.path.isfile(run.config_file):
        return
    kept = read_config(Namespace(config_file=run.config_file, opts=[]))
    for key, (before, now) in _differences(kept, run.cfg).items():
        raise ValueError(
            f'{run.config_file} was begun with {key} {before!r}, and the row "{run.row}" has '
            f"{now!r} now: give the row another name, or delete the folder {run.folder}."
        )


def _differences(first: CfgNode, second: CfgNode) -> dict[str, tuple]:
    first, second = dict(_flat(first)), dict(_flat(second))
    keys = [*first, *(key for key in second if key not in first)]
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and key not in _OF_A_RUN}


def _flat(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _with_lists(value)


def _with_lists(value):
    """The same with lists for tuples, between which a yaml file does not tell."""
    return [_with_lists(v) for v in value] if isinstance(value, list | tuple) else value


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", " plus ")).strip("-")
