"""Run a trained model on single images."""

import numpy as np
import torch
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from ..data.class_thresholds import ClassInfo, class_info, class_thresholds
from ..data.mapper import augment
from ..engine import Job, load_model
from ..engine.setup.checks import require_weights
from ..errors import UserError
from ..evaluation.by_name import model_classes
from ..modeling.postprocessing import postprocessings


class Predictor:
    """Runs a detectron2 model on one image at a time.

    Args:
        model: the model, in evaluation mode.
        augmentations: those of the test loader, e.g. its resize.
        image_format: the channel order of the model, e.g. "RGB" or "BGR".
        classes: the model's classes.
        thresholds: (K,) the score threshold of each class.

    Attributes:
        classes: as above.
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
        for module in model.modules():  # drop what the thresholds drop anyway
            if hasattr(module, "test_score_thresh"):
                module.test_score_thresh = thresholds.min()

    @torch.no_grad()
    def __call__(self, image: np.ndarray, name: str = "") -> Instances:
        """Detect the objects of an image whose scores reach the thresholds of their classes.

        Args:
            image: (H, W, 3) uint8, RGB.
            name: of the image, for errors.

        Returns:
            Instances of the image's size on the CPU, in descending order of scores:
            ``pred_boxes``, ``scores``, ``pred_classes``, and ``pred_masks`` if the model predicts
            masks.

        Raises:
            UserError: the model does not return instances, or the image is too narrow for it.
        """
        height, width = image.shape[:2]
        resized = AugInput(convert_PIL_to_numpy(Image.fromarray(image), self._image_format))
        augment(self._augmentations, resized, name)
        array = np.require(resized.image.transpose(2, 0, 1), requirements=("C", "W"))
        tensor = torch.as_tensor(array)
        (output,) = self._model([{"image": tensor, "height": height, "width": width}])
        if "instances" not in output:
            raise UserError(
                f"The model is not a detector: it returns {', '.join(output)}, not instances."
            )
        instances = output["instances"].to("cpu")
        instances = instances[instances.scores >= self._thresholds[instances.pred_classes]]
        return instances[instances.scores.argsort(descending=True, stable=True)]


def build_predictor(job: Job, thresholds: str | None = None) -> Predictor:
    """Build the predictor of a job's checkpoint.

    The class names are those of the checkpoint, else those of the first test or training set that
    can be read. The frequency groups are those of the evaluation. The images of the sets need not
    exist.

    Args:
        job: the job, as :func:`apa_det.engine.read_job` returns it.
        thresholds: see :func:`apa_det.demo.class_thresholds`. None: those of
            ``TEST.SCORE_THRESH_PER_GROUP``, else 0.5.

    Raises:
        UserError: the config, its weights or the thresholds are not valid.
    """
    require_weights(job, eval_only=True, resume=False)
    job.read_class_counts()
    model = load_model(job.for_inference()).eval()
    names = [*job.test_datasets, *job.train_datasets]
    own = model_classes(model)
    classes = class_info(names, _num_classes(model), job.groups, job.count_from, own)
    processings = postprocessings(model)
    if thresholds is None:
        thresholds = next((p.score_thresh_per_group for p in processings), "") or "0.5"
    for processing in processings:
        processing.score_thresh_per_group = ""  # the predictor applies them
    mapper = job.build_test_mapper()
    return Predictor(
        *(model, mapper.augmentations, mapper.image_format, classes),
        class_thresholds(thresholds, classes, 0.5),
    )


def _num_classes(model: nn.Module) -> int:
    num_classes = getattr(getattr(model, "roi_heads", model), "num_classes", None)
    if num_classes is None:
        raise UserError(f"The model is not a detector: {type(model).__name__} has no num_classes.")
    return num_classes
