"""Plan a comparison: read the configs of its rows, and check that they can be compared."""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from os.path import relpath
from pathlib import Path
from tempfile import TemporaryDirectory

from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from ..engine import Job, check_job, read_job
from ..engine.run_folder import has_checkpoint
from ..engine.setup.config_files import config_errors, is_lazy_config
from ..errors import MissingFileError, UserError
from ..text import printable
from ..utils.yaml_files import read_yaml

logger = logging.getLogger(__name__)

# Data, schedule and evaluation: keys, or prefixes of keys, whose values all rows must share.
_SHARED_YAML_KEYS = (
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
_SHARED_LAZY_KEYS = (
    "dataloader.lvis_format",
    "dataloader.train.dataset.",
    "dataloader.train.num_workers",
    "dataloader.train.total_batch_size",
    "dataloader.test.dataset.",
    "dataloader.test.mapper.augmentations",
    "dataloader.evaluator.",
    "lr_multiplier.",
    "train.max_iter",
    "train.reference_world_size",
    "train.eval_period",
    "train.eval_subset",
    "train.test_augmentation.",
)
_RUN_KEYS = ("OUTPUT_DIR", "SEED", "train.output_dir", "train.seed")  # set for each run


@dataclass(frozen=True)
class Row:
    """A config to compare, one line of the table."""

    name: str
    job: Job  # without the seed and output folder of a run
    model_of: str = ""  # the row whose models it evaluates; "": it trains its own


@dataclass(frozen=True)
class Run:
    """The training of a row with one seed, in its own folder.

    A run with ``trained_by`` trains nothing: it evaluates the final model of that run.
    """

    row: str
    seed: int
    folder: str
    job: Job = field(compare=False)
    trained_by: "Run | None" = None

    @property
    def config_file(self) -> str:
        return os.path.join(self.folder, "config.yaml")

    @property
    def result_file(self) -> str:
        """The file that is written last."""
        return os.path.join(self.folder, "result.json")

    @property
    def predictions_file(self) -> str:
        return os.path.join(self.folder, "predictions.json.gz")

    @property
    def model_file(self) -> str:
        return os.path.join(self.folder, "model_final.pth")

    @property
    def num_iterations(self) -> int:
        return 0 if self.trained_by else self.job.max_iter

    @property
    def is_done(self) -> bool:
        return os.path.isfile(self.result_file)

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return has_checkpoint(self.folder)


@dataclass(frozen=True)
class Plan:
    """The rows, seeds and output folder of a comparison."""

    rows: list[Row]
    seeds: list[int]
    output_dir: str

    @cached_property
    def runs(self) -> list[Run]:
        """All rows with the first seed, then all rows with the next one, and so on."""
        return [self._run(row, seed) for seed in self.seeds for row in self.rows]

    def _run(self, row: Row, seed: int) -> Run:
        folder = os.path.join(self.output_dir, "runs", _slug(row.name), f"seed{seed}")
        job = row.job.changed({"seed": seed, "output_dir": folder})
        if not row.model_of:
            return Run(row.name, seed, folder, job)
        trained_by = self._run(next(r for r in self.rows if r.name == row.model_of), seed)
        job = job.changed({"weights": trained_by.model_file})
        return Run(row.name, seed, folder, job, trained_by)

    def differences(self) -> dict[str, dict[str, tuple]]:
        """Return per row, except the first, the values that differ: key -> (first row's, its)."""
        first, *others = self.rows
        return {row.name: _differences(first.job, row.job) for row in others}

    def check(self) -> None:
        """Raise a UserError unless all rows can be trained and compared.

        Raises:
            UserError: rows differ in data, schedule or evaluation; a config is not valid (see
                :func:`apa_det.engine.check_job`); or a run was started with another config.
        """
        self.require_same_conditions()
        for row in self.rows:
            with config_errors(f'The row "{row.name}"'):
                check_job(row.job)
            if isinstance(row.job.config, DictConfig):
                _require_saveable(row)
        job = self.rows[0].job
        names, key = tuple(job.test_datasets), job.KEYS["test_datasets"]
        if len(names) != 1 or not job.is_long_tail(names[0]):
            raise UserError(
                f"{key} must be one dataset with the long-tail evaluation, got {names}; "
                f"{job.LONG_TAIL_ADVICE}."
            )
        for run in self.runs:
            _require_same_config(run)

    def require_same_conditions(self) -> None:
        """Raise a UserError if rows differ in data, schedule or evaluation."""
        first, *others = self.rows
        for row in others:
            if type(row.job) is not type(first.job):
                raise UserError(
                    f'One of the rows "{first.name}" and "{row.name}" is a yaml config and the '
                    "other a LazyConfig: use one format for all rows."
                )
        for name, keys in self.differences().items():
            for key, values in keys.items():
                if _is_shared(key, values):
                    raise UserError(
                        f'The rows "{first.name}" and "{name}" differ in {key}, {values[0]!r} and '
                        f"{values[1]!r}: set it to one value, as all rows of a comparison need the "
                        "same data, schedule and evaluation."
                    )


def read_plan(
    output_dir: str,
    description: str | None = None,
    configs: Sequence[str | os.PathLike] = (),
    *,
    seeds: Sequence[int] = (),
    opts: Sequence[str] = (),
    imports: Sequence[str] = (),
) -> Plan:
    """Read the plan of a comparison.

    Args:
        output_dir: the folder of the comparison.
        description: a yaml file with ``base``, the config file of all rows; ``overrides``, a list
            of overrides of all rows (``[KEY, VALUE, ...]`` for yaml configs, ``["key=value", ...]``
            for LazyConfigs); ``seeds``, a list; and ``rows``. Each row has a ``name`` and
            optionally a ``config``, which replaces ``base``, and its own overrides ``opts``. A row
            with ``model_of``, the name of a row above it, trains nothing: it evaluates the models
            of that row, with its own ``opts`` added. Paths are relative to the folder of the file.
            The other rows are compared with the first one.
        configs: config files, one additional row each.
        seeds: replace those of the description.
        opts: overrides of all rows, applied after those of the description.
        imports: modules that were imported to register components; each run imports them too.

    Raises:
        UserError: a file is missing or not valid.
    """
    content = {"rows": []} if description is None else _read_description(description)
    content["rows"] = _with_models(description, content["rows"])
    rows = [_described_row(description, content, row, opts, imports) for row in content["rows"]]
    rows += [Row(Path(c).stem, _job(os.fspath(c), opts, imports)) for c in configs]
    seeds = list(seeds or content.get("seeds", ()))
    if not rows:
        raise UserError("There is nothing to compare: give a description or --config-file.")
    if not seeds or any(type(s) is not int or s < 0 for s in seeds) or len({*seeds}) < len(seeds):
        raise UserError(f"seeds must be different integers >= 0, got {seeds}.")
    slugs = [_slug(row.name) for row in rows]
    for i, slug in enumerate(slugs):
        if slug in slugs[:i] or not slug:
            problem = (
                f'its folder "{slug}" is that of another row' if slug else "it has no a-z, 0-9"
            )
            raise UserError(f'Rename the row "{rows[i].name}": {problem}.')
    return Plan(rows, seeds, output_dir)


def _read_description(path: str) -> dict:
    if not os.path.isfile(path):
        raise MissingFileError(f"There is no comparison file {path}.")
    content = read_yaml(path)
    _require_keys(path, content, {"base", "overrides", "seeds", "rows"})
    if not isinstance(content.get("rows"), list) or not content["rows"]:
        raise UserError(f"{path}: rows must be a list of rows, each with a name.")
    if not isinstance(content.get("seeds", []), list):
        raise UserError(f"{path}: seeds must be a list, got {content['seeds']!r}.")
    if not isinstance(content.get("overrides", []), list):
        raise UserError(f"{path}: overrides must be a list, got {content['overrides']!r}.")
    for row in content["rows"]:
        _require_keys(f"{path}, a row", row, {"name", "config", "opts", "model_of"})
        if not isinstance(row.get("name"), str):
            raise UserError(f"{path}: the name of a row must be a string, got {row!r}.")
        if not isinstance(row.get("opts", []), list):
            raise UserError(
                f'{path}: opts of the row "{row["name"]}" must be a list, got {row["opts"]!r}.'
            )
        file = row.get("config", content.get("base"))
        if not isinstance(file, str) or not file:
            raise UserError(
                f'{path}: the row "{row["name"]}" needs the path of a config file as config, or as '
                f"base for all rows, got {file!r}."
            )
    options = [content.get("overrides", ()), *(row.get("opts", ()) for row in content["rows"])]
    for option in map(str, chain.from_iterable(options)):
        if "_target_" in option or "${" in option:
            raise UserError(
                f"{path}: an override must not have _target_ or ${{...}}, which run code in a "
                f"LazyConfig; got {option}. Set it in the config."
            )
    return content


def _with_models(path: str | None, rows: list[dict]) -> list[dict]:
    """Give the rows with ``model_of`` the config and the overrides of the row that they name."""
    trained: dict[str, dict] = {}
    complete = []
    for row in rows:
        if "model_of" in row:
            if "config" in row:
                raise UserError(
                    f'{path}: the row "{row["name"]}" has both model_of and config: remove config, '
                    "as it has the config of the row whose models it evaluates."
                )
            if row["model_of"] not in trained:
                raise UserError(
                    f'{path}: model_of of the row "{row["name"]}" must be the name of a row above '
                    f"it that trains, got {row['model_of']!r}."
                )
            base = trained[row["model_of"]]
            row = {**base, **row, "opts": [*base.get("opts", ()), *row.get("opts", ())]}
        else:
            trained[row["name"]] = row
        complete.append(row)
    return complete


def _require_keys(what: str, content, known: set[str]) -> None:
    unknown = content.keys() - known if isinstance(content, dict) else [content]
    if unknown:
        unknown = printable(", ".join(map(str, unknown)))
        raise UserError(f"{what}: unknown key {unknown}; expected {', '.join(sorted(known))}.")


def _described_row(
    path: str, content: dict, row: dict, opts: Sequence[str], imports: Sequence[str]
) -> Row:
    file = row.get("config", content.get("base"))
    file = os.path.join(os.path.dirname(path), file)
    opts = [*content.get("overrides", ()), *row.get("opts", ()), *opts]
    with config_errors(f'{path}, row "{row["name"]}"'):
        if not file.endswith(".py") and is_lazy_config(file):
            raise UserError(
                f"{file} is a saved LazyConfig, which is code. Give it by --config-file, "
                "or name the .py file that it was made from."
            )
        return Row(row["name"], _job(file, opts, imports), row.get("model_of", ""))


def _job(file: str, opts: Sequence, imports: Sequence[str]) -> Job:
    if is_lazy_config(file):
        opts = [str(option) for option in opts]  # key=value
    job = read_job(file, opts, imports)
    return job.changed({"save_predictions": True})  # for the intervals


def _require_saveable(row: Row) -> None:
    """Raise a UserError unless the config can be read from ``config.yaml``, as the runs do."""
    with TemporaryDirectory() as folder:
        row.job.changed({"output_dir": folder}).save_config()
        try:
            read_job(os.path.join(folder, "config.yaml"), imports=row.job.imports)
        except UserError as error:
            raise UserError(
                f'The config of the row "{row.name}" cannot be saved as yaml: replace lambdas, and '
                "functions that are defined in the config file, by functions of a module."
            ) from error


def _require_same_config(run: Run) -> None:
    """Raise a UserError if the run was started with another config."""
    if not os.path.isfile(run.config_file):
        return
    if is_lazy_config(run.config_file) != isinstance(run.job.config, DictConfig):
        raise UserError(
            f'The row "{run.row}" was started with a config of the other format '
            f"({run.config_file}): rename the row, or delete the folder {run.folder}."
        )
    kept = read_job(run.config_file, imports=run.job.imports)
    if run.trained_by and kept.weights:  # the same model, though the folder may have been moved
        model_file = run.trained_by.model_file
        if relpath(kept.weights, kept.output_dir) == relpath(model_file, run.folder):
            kept = kept.changed({"weights": model_file})
    for key, (before, now) in _differences(kept, run.job).items():
        raise UserError(
            f'{key} was {before!r} when the row "{run.row}" was started ({run.config_file}), but '
            f"is {now!r} now: rename the row, or delete the folder {run.folder}."
        )


def _differences(first: Job, second: Job) -> dict[str, tuple]:
    first, second = (dict(_flat(_plain(job.config))) for job in (first, second))
    keys = [*first, *(key for key in second if key not in first)]
    pairs = {key: (first.get(key), second.get(key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and key not in _RUN_KEYS}


def _plain(config: Mapping) -> Mapping:
    is_lazy = isinstance(config, DictConfig)
    return OmegaConf.to_container(config, resolve=True) if is_lazy else config


def _flat(node: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, _comparable(key, value)


def _comparable(key: str, value):
    """Convert tuples to lists and callables to names, as after saving and reading a config."""
    if isinstance(value, list | tuple):
        return [_comparable("", v) for v in value]
    if isinstance(value, Mapping):
        return {k: _comparable(k, v) for k, v in value.items()}
    if key == "_target_" and isinstance(value, str):
        value = locate(value)  # saved configs may have another name of the same object
    if isinstance(value, partial):
        keywords = _comparable("", value.keywords)
        return {"_target_": _comparable("", value.func), "args": [*value.args], **keywords}
    if isinstance(value, Callable) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return value


def _is_shared(key: str, values: tuple) -> bool:
    """Return whether all rows must agree on a key; one model may lack a LazyConfig's model key."""
    detection_limit = key.endswith(".test_topk_per_image") and None not in values
    return detection_limit or key.startswith((*_SHARED_YAML_KEYS, *_SHARED_LAZY_KEYS))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("+", " plus ")).strip("-")
