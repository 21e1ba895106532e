"""Detections in pictures and videos, drawn and as JSON."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import cv2
import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ..evaluation import draw_groups
from ..evaluation.predictions import detections_from_instances
from ..utils.json_files import json_list
from .classes import ClassInfo
from .files import read_picture, write_picture
from .predictor import Predictor
from .video import VideoWriter, frames, open_video

__all__ = ["run_on_pictures", "run_on_video"]

logger = logging.getLogger(__name__)

_DEFAULT_FPS = 30.0  # of a file that does not say
Detect = Callable[[np.ndarray, int, dict], np.ndarray]


def run_on_pictures(
    predictor: Predictor, pictures: Sequence[str], drawn: Sequence[str], json_file: str
) -> list[str]:
    """Detect in pictures, draw them, and list the detections in a JSON file.

    The list is that of LVIS's and COCO's results, with more keys in each record: ``category_name``,
    ``frequency`` (the frequency group, None if unknown) and ``file_name``. ``image_id`` is the
    place among the pictures, from 0.

    Args:
        predictor: the model.
        pictures: the files.
        drawn: the files to write, one for each.
        json_file: the list of detections.

    Returns:
        The pictures that cannot be read, which are left out with an error in the log.
    """
    unread = []
    with _detecting(predictor, json_file) as detect:
        progress = tqdm(list(zip(pictures, drawn, strict=True)), desc="pictures", delay=2)
        for image_id, (path, drawn_path) in enumerate(progress):
            try:
                image = read_picture(path)
            except ValueError as error:
                logger.error("%s", error)
                unread.append(path)
            else:
                write_picture(detect(image, image_id, {"file_name": path}), drawn_path)
    return unread


def run_on_video(predictor: Predictor, path: str, drawn: str, json_file: str) -> None:
    """As :func:`run_on_pictures`, for the frames of a video.

    The records have the ``file_name`` of the video, and the number of the ``frame``, from 0, which
    is the ``image_id`` too.

    Raises:
        FileNotFoundError, ValueError: OpenCV cannot read the one file or write the other.
    """
    video = open_video(path)
    fps = video.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS
    expected = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))) or None  # as the file says
    number = 0
    with _detecting(predictor, json_file) as detect, closing(VideoWriter(drawn, fps)) as writer:
        for number, image in enumerate(tqdm(frames(video), "frames", expected), start=1):
            keys = {"file_name": path, "frame": number - 1}
            writer.write(detect(image, number - 1, keys))
    if not number:
        raise ValueError(f"{path} holds no frame that OpenCV can read.")
    if number < (expected or 0):
        logger.warning("%s says that it has %d frames, and ends after %d.", path, expected, number)


@contextmanager
def _detecting(predictor: Predictor, json_file: str) -> Iterator[Detect]:
    """Within, what is called with a picture, its id and more keys of its records draws it."""
    classes = predictor.classes
    counts = Counter()
    os.makedirs(os.path.dirname(json_file) or ".", exist_ok=True)
    with json_list(json_file) as write:

        def detect(image: np.ndarray, image_id: int, keys: dict) -> np.ndarray:
            found = predictor(image)
            for record in _records(found, image_id, classes):
                counts[record["frequency"]] += 1
                write({**record, **keys})
            return draw_groups(image, found, classes.names, classes.groups, classes.group_indices)

        yield detect
    known = [f"{counts[name]} {label}" for name, label in classes.groups.named()]
    unknown = [f"{counts[None]} of no known group"] if counts[None] else []
    logger.info(
        "%d detections (%s): see %s and what is drawn beside it.",
        *(counts.total(), ", ".join(known + unknown), json_file),
    )


def _records(found: Instances, image_id: int, classes: ClassInfo) -> Iterator[dict]:
    detections = detections_from_instances(found, image_id, classes.category_ids)
    for record, c in zip(detections.records(), found.pred_classes.tolist(), strict=True):
        group = classes.group_indices[c]
        yield {
            **record,
            "category_name": classes.names[c],
            "frequency": classes.groups.names[group] if group >= 0 else None,
        }
