"""Read and write videos with OpenCV."""

import os
from collections.abc import Iterator

import cv2
import numpy as np

from ..errors import MissingFileError, UserError

_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v"}
VIDEO_EXTENSIONS = tuple(_CODECS)  # of the videos that can be written


def open_video(path: str) -> cv2.VideoCapture:
    """Open a video file.

    Raises:
        MissingFileError: the file does not exist.
        UserError: OpenCV cannot read the file.
    """
    if not os.path.isfile(path):
        raise MissingFileError(f"There is no video {path}.")
    video = cv2.VideoCapture(path)
    if not video.isOpened():
        raise UserError(f"OpenCV cannot read the video {path}.")
    return video


def frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Yield the frames that can be read, each (H, W, 3) uint8, RGB."""
    while True:
        done, frame = video.read()
        if not done:
            return
        yield np.ascontiguousarray(frame[:, :, ::-1])


class VideoWriter:
    """Writes frames of one size into a video file, which is created at the first frame."""

    def __init__(self, path: str, fps: float):
        self._path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Write a frame, (H, W, 3) uint8, RGB.

        Raises:
            UserError: OpenCV cannot write the file.
        """
        if self._writer is None:
            os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
            codec = cv2.VideoWriter_fourcc(*_CODECS[os.path.splitext(self._path)[1].lower()])
            size = frame.shape[1], frame.shape[0]
            self._writer = cv2.VideoWriter(self._path, codec, self._fps, size)
            if not self._writer.isOpened():
                raise UserError(f"OpenCV cannot write the video {self._path}.")
        self._writer.write(np.ascontiguousarray(frame[:, :, ::-1]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
