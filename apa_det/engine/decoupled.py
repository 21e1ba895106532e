"""Train a job in one stage, or, with decoupled training, in two.

"Decoupling Representation and Classifier for Long-Tailed Recognition" (Kang et al., ICLR 2020),
section 4.1, classifier re-training: the classifier is re-initialized and trained under
class-balanced sampling, on a fixed representation that was trained under natural sampling.
"""

import gc
import logging
from collections import OrderedDict
from collections.abc import Sequence

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..errors import UserError
from ..utils.seeding import seed_all
from .closing import log_training_end
from .freezing import require_matches
from .job import Job
from .run_folder import (
    claim_folder,
    has_checkpoint,
    release_folder,
    remove_run,
    require_kept_weights,
)

logger = logging.getLogger(__name__)


def train(job: Job, *, resume: bool = False, overwrite: bool = False) -> OrderedDict:
    """Train a job, in one stage or, with decoupled training, in two.

    Args:
        job: the job, as :func:`apa_det.engine.setup_job` returns it.
        resume: continue from the last checkpoint of the last stage that has one. False: start a
            new training.
        overwrite: delete checkpoints of another training in the output folders when a new training
            starts. False: they are an error.

    Returns:
        The results of the last evaluation; empty except in the main process.

    Raises:
        UserError: the settings do not fit the model or the data, before any training; or an output
            folder is in use, or has checkpoints of another training.
    """
    stages = job.stages()
    folders = [stage.output_dir for stage in stages]
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: give one of them.")
    if overwrite:
        require_kept_weights(folders, job.weights, job.KEYS)
    claim_folder(*folders, key=job.KEYS["output_dir"], resume=resume, overwrite=overwrite)
    try:
        return _train_stages(stages, resume=resume)
    finally:
        release_folder(job.output_dir)


def _train_stages(stages: Sequence[Job], *, resume: bool) -> OrderedDict:
    first = _resumed_stage(stages) if resume else 0
    seed = stages[0].seed
    results, failure = OrderedDict(), None
    for i, stage in enumerate(stages):
        if len(stages) > 1:
            parameters = ("the whole model", "the classifier")[i]
            logger.info(
                "Decoupled training, stage %d of 2 %s: %s, in %s",
                *(i + 1, "is complete" if i < first else "starts", parameters, stage.output_dir),
            )
        if i >= first:
            comm.synchronize()  # wait for the files that the main process writes and removes
            PathManager.mkdirs(stage.output_dir)
            if i > 0 and seed >= 0:
                stage = stage.changed({"seed": seed})
                seed_all(seed, 2, comm.get_rank())  # as after a resume
            trainer = _build_trainer(stage, stages[i + 1 :], resume=resume, is_second=i > 0)
            results, seed = trainer.train(), trainer.job.seed
            failure = failure or trainer.figure_failure
            del trainer
            gc.collect()  # free the model before the next one is built
    if comm.is_main_process():
        log_training_end(stages[-1])
    if failure is not None:
        raise failure
    return results


def last_stage(job: Job) -> Job:
    """Return the last stage of a job that has a checkpoint; the first stage if none has."""
    stages = job.stages()
    return stages[_resumed_stage(stages)]


def _build_trainer(stage: Job, later: Sequence[Job], *, resume: bool, is_second: bool):
    """Return the trainer of a stage, with its weights loaded."""
    trainer = stage.build_trainer()
    checkpointer = trainer.checkpointer
    for job in later:
        require_matches(checkpointer.model, job.trained, job.KEYS["decoupled_trained"])
    if is_second:
        if comm.is_main_process():
            stage.save_config()
        # The second stage starts from the weights that the first one evaluated.
        resumes = resume and checkpointer.has_checkpoint()
        checkpointer.averaged = stage.ema_decay is not None and not resumes
    trainer.resume_or_load(resume=resume)
    if not (resume or is_second) and comm.is_main_process():
        for job in (stage, *later):
            remove_run(job.output_dir)
    return trainer


def _resumed_stage(stages: Sequence[Job]) -> int:
    begun = (i for i, stage in enumerate(stages) if has_checkpoint(stage.output_dir))
    return max(begun, default=0)
