"""A trained model, ready for single pictures."""

import numpy as np
import torch
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from ..engine import Job, load_model
from ..engine.setup.checks import require_weights
from ..errors import UserError
from .classes import ClassInfo, class_info, class_thresholds

__all__ = ["Predictor", "build_predictor"]


class Predictor:
    """A model of detectron2's on one picture at a time.

    Args:
        model: in evaluation mode.
        augmentations: what a test loader does to a picture, such as its resize.
        image_format: the channels that the model takes, such as "RGB" or "BGR".
        classes: the model's.
        thresholds: (K,) the least score of each class that counts.

    Attributes:
        classes: as given.
    """

    def __init__(
        self,
        model: nn.Module,
        augmentations: AugmentationList,
        image_format: str,
        classes: ClassInfo,
        thresholds: np.ndarray,
    ):
        self.classes = classes
        self._model = model
        self._augmentations = augmentations
        self._image_format = image_format
        self._thresholds = torch.from_numpy(thresholds)
        for module in model.modules():  # what is less does not count, so it need not be found
            if hasattr(module, "test_score_thresh"):
                module.test_score_thresh = thresholds.min()

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """What is detected in a picture with at least the score of its class, on the CPU.

        Args:
            image: (H, W, 3) uint8, RGB.

        Returns:
            ``pred_boxes``, ``scores`` and ``pred_classes``, and ``pred_masks`` if the model
            predicts masks, for the picture's own size; the highest scores first.

        Raises:
            ValueError: the model detects no instances.
        """
        height, width = image.shape[:2]
        resized = AugInput(convert_PIL_to_numpy(Image.fromarray(image), self._image_format))
        self._augmentations(resized)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        (output,) = self._model([{"image": tensor, "height": height, "width": width}])
        if "instances" not in output:
            raise UserError(
                f"The model gives {', '.join(output)} and no instances: this takes detectors."
            )
        found = output["instances"].to("cpu")
        found = found[found.scores >= self._thresholds[found.pred_classes]]
        return found[found.scores.argsort(descending=True, stable=True)]


def build_predictor(job: Job, thresholds: str) -> Predictor:
    """Build the predictor of a job's checkpoint.

    The classes are those of the first test or training set that can be read, with the frequency
    groups of the evaluation. Their images need not exist.

    Args:
        job: the job, as :func:`apa_det.engine.read_job` returns it.
        thresholds: see :func:`apa_det.demo.class_thresholds`.

    Raises:
        UserError: the config, its weights or the thresholds are not valid.
    """
    require_weights(job, eval_only=True, resume=False)
    job.read_class_counts()
    model = load_model(job.for_inference()).eval()
    names = [*job.test_datasets, *job.train_datasets]
    classes = class_info(names, _num_classes(model), job.groups, job.count_from)
    least = class_thresholds(thresholds, classes)
    mapper = job.build_test_mapper()
    return Predictor(model, mapper.augmentations, mapper.image_format, classes, least)


def _num_classes(model: nn.Module) -> int:
    num_classes = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    if num_classes is None:
        raise UserError(f"{type(model).__name__} has no num_classes: this takes detectors.")
    return num_classes
