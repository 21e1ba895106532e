"""Train a job in one stage, or, with decoupled training, in two.

"Decoupling Representation and Classifier for Long-Tailed Recognition" (Kang et al., ICLR 2020),
section 4.1, classifier re-training: the classifier is re-initialized and trained under
class-balanced sampling, on a fixed representation that was trained under natural sampling.
"""

import gc
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence

from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .freezing import require_matches
from .job import Job

logger = logging.getLogger(__name__)


def train(job: Job, *, resume: bool = False) -> OrderedDict:
    """Train a job, in one stage or, with decoupled training, in two.

    Args:
        job: the job, as :func:`apa_det.engine.setup_job` returns it.
        resume: continue from the last checkpoint of the last stage that has one. False: start a
            new training; checkpoints of an earlier second stage are then never resumed.

    Returns:
        The results of the last evaluation; empty except in the main process.

    Raises:
        UserError: the settings do not fit the model or the data, before any training.
    """
    stages = job.stages()
    first = _resumed_stage(stages) if resume else 0
    if not resume and comm.is_main_process():
        for stage in filter(_has_checkpoint, stages[1:]):
            PathManager.rm(_tag(stage))
    results = OrderedDict()
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
            results = _train_stage(stage, stages[i + 1 :], resume=resume, is_second=i > 0)
            gc.collect()  # free the model before the next one is built
    return results


def last_stage(job: Job) -> Job:
    """Return the last stage of a job that has a checkpoint; the first stage if none has."""
    stages = job.stages()
    return stages[_resumed_stage(stages)]


def _train_stage(stage: Job, later: Sequence[Job], *, resume: bool, is_second: bool) -> OrderedDict:
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
    return trainer.train()


def _resumed_stage(stages: Sequence[Job]) -> int:
    return max((i for i, stage in enumerate(stages) if _has_checkpoint(stage)), default=0)


def last_checkpoint(stage: Job) -> str | None:
    """Return the path that ``last_checkpoint`` in the output folder names; None without it."""
    if not _has_checkpoint(stage):
        return None
    with PathManager.open(_tag(stage)) as file:
        return os.path.join(stage.output_dir, file.read().strip())


def _tag(stage: Job) -> str:
    return os.path.join(stage.output_dir, "last_checkpoint")


def _has_checkpoint(stage: Job) -> bool:
    return PathManager.isfile(_tag(stage))
