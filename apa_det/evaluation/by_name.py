"""Evaluation by class name: the classes of a model need not have the order of the test set's."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from torch import nn

from ..data.class_names import map_classes
from ..errors import UserError

_KEY = "_apa_det_class_names"


def set_model_classes(model: nn.Module, names: Sequence[str] | None) -> None:
    """Store the names of a model's classes with it; None: they are unknown."""
    setattr(model, _KEY, None if names is None else list(names))


def model_classes(model: nn.Module) -> list[str] | None:
    """Return the class names of a model, or of the model that it wraps; None if unknown."""
    found = (vars(module).get(_KEY) for module in model.modules())
    return next((names for names in found if names is not None), None)


def by_name(evaluator: DatasetEvaluator, dataset_name: str, model: nn.Module) -> DatasetEvaluator:
    """Return an evaluator of a model's predictions whose classes go by name.

    Args:
        evaluator: the evaluator of the dataset, of any kind. It is returned itself if the dataset
            has the classes of the model in the same order, or if names are unknown.
        dataset_name: the dataset; predictions of classes that it lacks are dropped. If it is not
            registered, its names are unknown.
        model: the model, with names from :func:`set_model_classes`.

    Raises:
        UserError: the dataset has classes that the model does not have.
    """
    names = model_classes(model)
    known = names is not None and dataset_name in DatasetCatalog
    indices = map_classes(dataset_name, names) if known else None
    return evaluator if indices is None else ByNameEvaluator(evaluator, indices)


class ByNameEvaluator(DatasetEvaluator):
    """Gives another evaluator the predictions with the contiguous class ids of its dataset."""

    def __init__(self, evaluator: DatasetEvaluator, indices: np.ndarray):
        """
        Args:
            evaluator: the other evaluator.
            indices: see :func:`apa_det.data.class_names.map_classes`.
        """
        self._evaluator = evaluator
        self._indices = indices

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self._evaluator.process(inputs, [self._renamed(output) for output in outputs])

    def evaluate(self):
        return self._evaluator.evaluate()

    def _renamed(self, output: dict) -> dict:
        if "instances" not in output:
            return output
        return {**output, "instances": select_classes(output["instances"], self._indices)}


def select_classes(instances: Instances, indices: np.ndarray) -> Instances:
    """Return instances with other class indices, without those of index -1.

    Args:
        instances: with ``pred_classes``; not modified.
        indices: (K,), the new index of each class.
    """
    classes = instances.pred_classes
    if len(classes) and classes.max() >= len(indices):
        raise UserError(
            f"The model predicts class {classes.max()} (from 0), but it has only {len(indices)} "
            "class names. Use a checkpoint with the names of all of its classes."
        )
    new = torch.as_tensor(indices, device=classes.device)[classes]
    result = Instances(instances.image_size, **{**instances.get_fields(), "pred_classes": new})
    if (new >= 0).all():
        return result  # masks are large: do not copy them
    kept = (new >= 0).nonzero()[:, 0]
    selected = Instances(instances.image_size)
    for name, value in result.get_fields().items():
        rows = [value[i] for i in kept.tolist()] if isinstance(value, list) else value[kept]
        selected.set(name, rows)
    return selected
