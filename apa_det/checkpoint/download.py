"""Download checkpoints named by a URL."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from urllib.parse import urlparse

from detectron2.utils.file_io import PathManager

from ..errors import UserError
from ..text import printable

_TIMEOUT = 60  # seconds without an answer


def download_checkpoint(url: str) -> str:
    """Download a checkpoint to detectron2's cache, if it is not there yet.

    Args:
        url: ``https://...``, ``detectron2://...`` or the like; a query is ignored.

    Returns:
        The path of the local file.

    Raises:
        UserError: the file cannot be downloaded.
    """
    shown = printable(url, 300)
    advice = "Check the address and the network, or download the file and name its path."
    if ".." in url.split("/"):  # it could leave the cache
        raise UserError(f"Cannot download {shown}: a URL must not contain '..'. {advice}")
    try:
        with _timeout():
            path = PathManager.get_local_path(urlparse(url)._replace(query="").geturl())
    except (OSError, ValueError, HTTPException, AssertionError) as error:
        reason = printable(error, 200) or type(error).__name__
        raise UserError(f"Cannot download {shown}: {reason}. {advice}") from error
    if not os.path.isfile(path):  # no handler for its scheme
        raise UserError(f"Cannot download {shown}: unknown kind of URL. {advice}")
    return path


@contextmanager
def _timeout() -> Iterator[None]:
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(previous or _TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
