"""What a comparison trains: the config of every row, checked to be comparable, and its runs."""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import yaml
from omegaconf import DictConfig, OmegaConf

from ..engine import Job, check_job, read_job
from ..engine.setup.reading import config_errors
from ..errors import MissingFileError, UserError

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
    "dataloader.evaluator.",
    "dataloader.lvis_format",
    "dataloader.test.",
    "dataloader.train.dataset.",
    "dataloader.train.num_workers",
    "dataloader.train.total_batch_size",
    "lr_multiplier.",
    "train.eval_period",
    "train.eval_subset",
    "train.max_iter",
    "train.reference_world_size",
    "train.test_augmentation.",
)
# What says nothing of the model or the conditions.
_OF_A_RUN = ("OUTPUT_DIR", "SEED", "train.output_dir", "train.seed")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    job: Job  # without the seed and the folder of a run


@dataclass(frozen=True)
class Run:
    """One training, in a folder of its own."""

    row: str
    seed: int
    folder: str
    job: Job

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
        return Run(row.name, seed, folder, row.job.changed({"seed": seed, "output_dir": folder}))

    def differences(self) -> dict[str, dict[str, tuple]]:
        """For each row but the first, the keys whose values differ: (the first row's, its own)."""
        first, *others = self.rows
        return {row.name: _differences(first.job, row.job) for row in others}

    def check(self) -> None:
        """Raise an error unless all rows can be trained, and compared.

        Raises:
            FileNotFoundError, ValueError: rows differ in what must be the same, a config cannot
                work (see :func:`apa_det.engine.check_config`), or a kept config is another one.
        """
        self.require_same_conditions()
        for row in self.rows:
            with config_errors(f'The row "{row.name}"'):
                check_job(row.job)
        job = self.rows[0].job
        names, key = tuple(job.test_datasets), job.KEYS["test_datasets"]
        if len(names) != 1 or not job.is_long_tail(names[0]):
            raise UserError(
                f"{key} is {names}: a comparison needs one dataset with the long-tail evaluation; "
                f"{job.KEYS['long_tail']}."
            )
        for run in self.runs:
            _require_same_config(run)

    def require_same_conditions(self) -> None:
        """Raise a ValueError where rows differ in data, schedule or evaluation."""
        for name, keys in self.differences().items():
            for key, (theirs, own) in keys.items():
                if key.startswith(_SAME):
                    raise UserError(
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
    imports: Sequence[str] = (),
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
        imports: modules that were imported to register components; each run imports them too.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or something in it is wrong.
    """
    content = {"rows": []} if description is None else _read_description(description)
    rows = [_described_row(description, content, row, opts, imports) for row in content["rows"]]
    rows += [Row(os.path.splitext(os.path.basename(c))[0], _job(c, opts, imports)) for c in configs]
    seeds = list(seeds or content.get("seeds", ()))
    if not rows:
        raise UserError("There is nothing to compare: give a description, or --configs.")
    if not seeds or len(set(seeds)) < len(seeds) or any(type(s) is not int or s < 0 for s in seeds):
        raise UserError(f"The seeds are {seeds}: give different whole numbers from 0.")
    slugs = [_slug(row.name) for row in rows]
    for i, slug in enumerate(slugs):
        if slug in slugs[:i] or not slug:
            raise UserError(
                f'The name "{rows[i].name}" of a row gives its folder the name "{slug}", which is '
                f"{'that of another row' if slug else 'empty'}: give it another name."
            )
    return Plan(rows, seeds, output_dir)


def _read_description(path: str) -> dict:
    if not os.path.isfile(path):
        raise MissingFileError(f"There is no description {path} of a comparison.")
    with config_errors(path), open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    _require_keys(path, content, {"base", "overrides", "seeds", "rows"})
    if not isinstance(content.get("rows"), list) or not content["rows"]:
        raise UserError(f"{path} needs a list of rows, each with a name.")
    if not isinstance(content.get("seeds", []), list):
        raise UserError(f"{path}: seeds is a list of whole numbers, not {content['seeds']!r}.")
    if not isinstance(content.get("overrides", []), list):
        raise UserError(f"{path} needs overrides as a list [KEY, VALUE, ...].")
    for row in content["rows"]:
        _require_keys(f"{path}, a row", row, {"name", "config", "opts"})
        if not isinstance(row.get("name"), str):
            raise UserError(f"{path}: the row {row!r} needs a name.")
        if not isinstance(row.get("opts", []), list):
            raise UserError(f'{path}: the row "{row["name"]}" needs opts as a list, as overrides.')
        if not row.get("config", content.get("base")):
            raise UserError(f'{path}: there is no base, so the row "{row["name"]}" needs a config.')
    return content


def _require_keys(what: str, content, known: set[str]) -> None:
    keys = content.keys() if isinstance(content, dict) else {content}
    if keys - known:
        wrong = ", ".join(map(str, keys - known))
        raise UserError(f"{what} has the keys {', '.join(sorted(known))}, and not {wrong}.")


def _described_row(
    path: str, content: dict, row: dict, opts: Sequence[str], imports: Sequence[str]
) -> Row:
    file = row.get("config", content.get("base"))
    file = os.path.join(os.path.dirname(path), file)
    own = [*content.get("overrides", ()), *row.get("opts", ()), *opts]
    with config_errors(f'{path}, row "{row["name"]}"'):
        return Row(row["name"], _job(file, own, imports))


def _job(file: str, opts: Sequence, imports: Sequence[str]) -> Job:
    job = read_job(file, opts, imports)
    return job.changed({"save_predictions": True})  # the intervals need them


def _require_same_config(run: Run) -> None:
    """Raise a ValueError where the run was begun with another config than it has now."""
    if not os.path.isfile(run.config_file):
        return
    kept = read_job(run.config_file, imports=run.job.imports)
    for key, (before, now) in _differences(kept, run.job).items():
        raise UserError(
            f'{run.config_file} was begun with {key} {before!r}, and the row "{run.row}" has '
            f"{now!r} now: give the row another name, or delete the folder {run.folder}."
        )


def _differences(first: Job, second: Job) -> dict[str, tuple]:
    first, second = (dict(_flat(_plain(job.config))) for job in (first, second))
    keys = [*first, *(key for key in second if key not in first)]
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and key not in _OF_A_RUN}


def _plain(config: Mapping) -> Mapping:
    is_lazy = isinstance(config, DictConfig)
    return OmegaConf.to_container(config, resolve=True) if is_lazy else config


def _flat(node: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _comparable(value)


def _comparable(value):
    """Return lists for tuples and names for functions, as a yaml file has them."""
    if isinstance(value, list | tuple):
        return [_comparable(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _comparable(v) for k, v in value.items()}
    if isinstance(value, Callable) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", " plus ")).strip("-")
