"""Videos in and out, through OpenCV."""

import os
from collections.abc import Iterator

import cv2
import numpy as np

__all__ = ["VIDEOS", "VideoWriter", "frames", "open_video"]

_CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v"}
VIDEOS = tuple(_CODECS)  # extensions of what can be written


def open_video(path: str) -> cv2.VideoCapture:
    """A video file.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no video that OpenCV reads.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no video {path}.")
    video = cv2.VideoCapture(path)
    if not video.isOpened():
        raise ValueError(f"{path} is no video that OpenCV can read.")
    return video


def frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames that can be read, (H, W, 3) uint8, RGB each."""
    while True:
        done, frame = video.read()
        if not done:
            return
        yield np.ascontiguousarray(frame[:, :, ::-1])


class VideoWriter:
    """Writes (H, W, 3) uint8, RGB frames of one size into a video file, made at the first one."""

    def __init__(self, path: str, fps: float):
        self._path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None

    def write(self, frame: np.ndarray) -> None:
        """Raises: ValueError: OpenCV cannot write the file."""
        if self._writer is None:
            os.makedirs(os.path.dirname(self._path) or ".", exist_ok=True)
            codec = cv2.VideoWriter_fourcc(*_CODECS[os.path.splitext(self._path)[1].lower()])
            size = frame.shape[1], frame.shape[0]
            self._writer = cv2.VideoWriter(self._path, codec, self._fps, size)
            if not self._writer.isOpened():
                raise ValueError(f"OpenCV cannot write the video {self._path}.")
        self._writer.write(np.ascontiguousarray(frame[:, :, ::-1]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
