"""Write the predictions of a checkpoint for a test set as a result file."""

import os

from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm

from ...errors import UserError
from ...evaluation.by_name import by_name
from ...evaluation.evaluator import RESULTS_FILE
from ..job import Job
from ..testing import load_model


def write_predictions(job: Job, output_dir: str) -> str:
    """Evaluate a job's checkpoint on its first test set, and write its predictions.

    If the job has test-time augmentation, it is applied.

    Args:
        job: the job, set up for evaluation.
        output_dir: the folder to write to.

    Returns:
        The path of the result file.

    Raises:
        UserError: there is no test set, it has no long-tail evaluation, or the checkpoint does not
            fit.
    """
    name = job.first_test_dataset()
    if not job.is_long_tail(name):
        raise UserError(
            f"Predictions can be written only with the long-tail evaluation, which {name} does not "
            f"have: {job.LONG_TAIL_ADVICE}."
        )
    evaluator = job.build_long_tail_evaluator(name, output_dir=output_dir, save_predictions=True)
    model = load_model(job)
    if job.test_time_augmentation:
        model = job.augmented(model)
    loader = job.build_test_loader(job.read_test_records(name))
    results = inference_on_dataset(model, loader, by_name(evaluator, name, model))
    if comm.is_main_process():
        print_csv_format(results)
    return os.path.join(output_dir, RESULTS_FILE)
