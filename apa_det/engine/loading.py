"""Errors of data loading, which all processes raise together: none waits for another one."""

from collections.abc import Iterator

from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..errors import UserError


class LoadingError(UserError):
    """A process cannot load its images. All processes raise it."""


def raise_in_all_processes(error: UserError | None) -> None:
    """Raise a LoadingError if a process has an error; every process must call it.

    Args:
        error: of this process.
    """
    messages = comm.all_gather(error and str(error))
    message = next((message for message in messages if message), None)
    if message:
        raise LoadingError(message) from error


class CheckedLoader:
    """A test loader that raises a LoadingError after the last image that a process can load.

    All processes must iterate over it to the end.
    """

    def __init__(self, loader: DataLoader):
        self._loader = loader
        self.dataset = getattr(loader, "dataset", None)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict]]:
        error = None
        try:
            yield from self._loader
        except UserError as caught:
            error = caught
        raise_in_all_processes(error)
