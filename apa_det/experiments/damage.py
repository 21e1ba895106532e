"""Find the runs of a comparison whose files are damaged, so that they are trained anew."""

import gzip
import logging
import os
import shutil
import zlib

import yaml

from ..engine.run_folder import resume_candidates
from ..errors import UserError
from ..text import printable
from ..utils.folder_lock import lock_folder, unlock_folder
from ..utils.json_files import read_json
from .plan import Plan, Run

logger = logging.getLogger(__name__)

_RESULT_KEYS = {"metrics", "seconds_per_iteration", "peak_memory_mb", "versions"}
_CHUNK = 2**20  # bytes


def discard_damaged(plan: Plan) -> None:
    """Delete the folders of runs with damaged files, with a warning for each.

    Raises:
        UserError: another process trains such a run.
    """
    for run in plan.runs:
        if damage := find_damage(run):
            logger.warning("%s The run starts anew.", damage)
            if lock_folder(run.folder, "The folder of the run"):
                unlock_folder(run.folder)
            shutil.rmtree(run.folder)


def find_damage(run: Run) -> str:
    """Return a sentence about the first damaged file of a run; "" if there is none."""
    try:
        if os.path.isfile(run.config_file) and (damage := _damage_of_config(run)):
            return damage
        if run.is_done:
            return _damage_of_results(run)
    except UserError as error:
        return str(error)
    names = resume_candidates(run.folder)
    if names and not any(os.path.isfile(os.path.join(run.folder, name)) for name in names):
        return f"The checkpoint {names[0]} in {run.folder} is missing."
    return ""


def _damage_of_config(run: Run) -> str:
    """Look at the syntax only: a file of another version or with other values is not damaged."""
    try:
        with open(run.config_file, encoding="utf-8") as file:
            if any(isinstance(event, yaml.MappingStartEvent) for event in yaml.parse(file)):
                return ""
        return f"{run.config_file} is damaged: it has no keys."
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"{run.config_file} is damaged ({printable(str(error), 100)})."


def _damage_of_results(run: Run) -> str:
    result = read_json(run.result_file)
    missing = _RESULT_KEYS - (result.keys() if isinstance(result, dict) else set())
    if missing:
        return f"{run.result_file} is damaged: it has no {min(missing)}."
    try:
        with gzip.open(run.predictions_file) as file:
            while file.read(_CHUNK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"{run.predictions_file} is missing or damaged ({error})."
    return ""
