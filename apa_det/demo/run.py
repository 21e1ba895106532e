"""Run a predictor on images and videos; draw the detections and list them as JSON."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import cv2
import numpy as np
from detectron2.structures import Instances

from ..data.class_thresholds import ClassInfo
from ..data.image_files import read_image
from ..errors import UserError
from ..evaluation import draw_groups
from ..evaluation.predictions import detections_from_instances
from ..utils.json_files import json_list
from ..utils.progress import track
from .files import write_image
from .predictor import Predictor
from .video import VideoWriter, frames, open_video

logger = logging.getLogger(__name__)

_DEFAULT_FPS = 30.0  # for files without a frame rate
_Detect = Callable[[np.ndarray, int, dict], np.ndarray]


def run_on_images(
    predictor: Predictor,
    paths: Sequence[str],
    drawn: Sequence[str],
    json_file: str,
    image_ids: Sequence[int] | None = None,
) -> list[str]:
    """Run on images, draw the detections, and list them in a JSON file.

    The JSON file is an LVIS or COCO result file with additional keys in each record:
    ``category_name``, ``frequency`` (the frequency group, None if unknown) and ``file_name``.
    :func:`apa_det.evaluation.read_results` takes the image and the category from ``file_name`` and
    ``category_name``, so ``image_id`` need not be that of a ground truth.

    Args:
        predictor: the predictor.
        paths: the image files.
        drawn: the drawn image to write for each of them.
        json_file: the JSON file to write.
        image_ids: the ``image_id`` of each image. None: its index in ``paths``.

    Returns:
        The paths of images that cannot be read or resized. They are skipped, with an error in the
        log.
    """
    unread = []
    with _detecting(predictor, json_file) as detect:
        ids = range(len(paths)) if image_ids is None else image_ids
        images = track(list(zip(ids, paths, drawn, strict=True)), "Detecting", "images")
        for image_id, path, drawn_path in images:
            try:
                image = read_image(path, "RGB")
                image = detect(image, image_id, {"file_name": path})
            except UserError as error:
                logger.error("%s", error)
                unread.append(path)
            else:
                write_image(image, drawn_path)
    return unread


def run_on_video(predictor: Predictor, path: str, drawn: str, json_file: str) -> None:
    """Run on the frames of a video, as :func:`run_on_images` on images.

    In the records, ``file_name`` is the video; ``frame`` and ``image_id`` are the frame's index.

    Raises:
        UserError: the video does not exist, or OpenCV cannot read it or write the drawn one.
    """
    video = open_video(path)
    fps = video.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS
    expected = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))) or None
    number = 0
    with _detecting(predictor, json_file) as detect, closing(VideoWriter(drawn, fps)) as writer:
        tracked = track(frames(video), "Detecting", "frames", expected)
        for number, image in enumerate(tracked, start=1):
            keys = {"file_name": path, "frame": number - 1}
            writer.write(detect(image, number - 1, keys))
    if not number:
        raise UserError(f"OpenCV cannot read any frame of {path}.")
    if number < (expected or 0):
        logger.warning("%s should have %d frames, but ends after %d.", path, expected, number)


@contextmanager
def _detecting(predictor: Predictor, json_file: str) -> Iterator[_Detect]:
    """Yield a function that runs on an image and draws it; write its records to the JSON file.

    The function takes the image, its id, and additional keys for its records.
    """
    classes = predictor.classes
    counts = Counter()
    os.makedirs(os.path.dirname(json_file) or ".", exist_ok=True)
    with json_list(json_file) as write:

        def detect(image: np.ndarray, image_id: int, keys: dict) -> np.ndarray:
            instances = predictor(image, keys["file_name"])
            for record in _records(instances, image_id, classes):
                counts[record["frequency"]] += 1
                write({**record, **keys})
            return draw_groups(
                image, instances, classes.names, classes.groups, classes.group_indices
            )

        yield detect
    known = [f"{counts[name]} {label}" for name, label in classes.groups.named()]
    unknown = [f"{counts[None]} of unknown group"] if counts[None] else []
    logger.info(
        "%d detections (%s), listed in %s.",
        *(counts.total(), ", ".join(known + unknown), json_file),
    )


def _records(instances: Instances, image_id: int, classes: ClassInfo) -> Iterator[dict]:
    detections = detections_from_instances(instances, image_id, classes.category_ids)
    for record, c in zip(detections.records(), instances.pred_classes.tolist(), strict=True):
        group = classes.group_indices[c]
        yield {
            **record,
            "category_name": classes.names[c],
            "frequency": classes.groups.names[group] if group >= 0 else None,
        }
