"""Analyze a job's checkpoint on images of its test set."""

import logging

import numpy as np
from detectron2.data import MetadataCatalog

from ...analysis import Analysis, analyze
from ...data.catalog import select_images
from ...data.class_names import category_ids, map_classes
from ...errors import UserError
from ...evaluation import choose_subset
from ...evaluation.by_name import model_classes
from ...evaluation.evaluator import read_ground_truth
from ..job import Job
from ..testing import load_model

logger = logging.getLogger(__name__)


def analyze_checkpoint(job: Job, num_images: int) -> Analysis:
    """Analyze the inputs of the activations, gates and class scores of a job's checkpoint.

    Args:
        job: the job, set up for evaluation. The images are from its first test set; the frequency
            groups are those of its evaluation.
        num_images: the number of images, chosen so that rare categories are included.

    Raises:
        UserError: ``num_images`` is not positive, there is no test set, or the checkpoint does not
            fill the model.
    """
    if num_images < 1:
        raise UserError(f"The number of images must be >= 1, got {num_images}.")
    name = job.first_test_dataset()
    model = load_model(job)
    records, groups = job.read_test_records(name), job.groups
    metadata, category_groups = MetadataCatalog.get(name), None
    mapper = job.build_test_mapper()
    if metadata.get("json_file") and any(record.get("annotations") for record in records):
        truth = read_ground_truth(name, groups, job.count_from)
        chosen = set(choose_subset(truth, num_images).tolist())
        records = select_images(records, chosen)
        indices = np.searchsorted(truth.category_ids, category_ids(metadata))
        groups, category_groups = truth.groups, truth.category_groups[indices]
        names = model_classes(model)
        of_model = None if names is None else map_classes(name, names)
        if of_model is not None:
            records = _with_model_classes(records, of_model)
            category_groups = np.where(of_model < 0, -1, category_groups[of_model])
        mapper.is_train = True  # keep the annotations; the augmentations are still those of a test
        mapper.use_instance_mask = mapper.use_keypoint = False
    else:
        logger.warning("%s has no annotations: its class scores are not analyzed.", name)
        order = np.random.default_rng(0).permutation(len(records))[:num_images]
        records = [records[i] for i in sorted(order.tolist())]
    loader = job.build_test_loader(records, mapper)
    return analyze(model, loader, groups=groups, category_groups=category_groups)


def _with_model_classes(records: list[dict], indices: np.ndarray) -> list[dict]:
    """Replace the classes of a dataset by those of the model; see ``map_classes``."""
    known = np.flatnonzero(indices >= 0)
    of_dataset = dict(zip(indices[known].tolist(), known.tolist(), strict=True))
    return [
        {
            **record,
            "annotations": [
                {**annotation, "category_id": of_dataset[annotation["category_id"]]}
                for annotation in record.get("annotations", ())
            ],
        }
        for record in records
    ]
