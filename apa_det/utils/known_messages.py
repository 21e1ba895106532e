"""Hide messages of other packages that tell the user of a command nothing.

Each filter names one message and where it comes from; everything else is shown. Importing apa_det
in another program changes nothing.
"""

import logging
import warnings

_WARNINGS = (  # start of the message, category, module that warns
    # detectron2's anchors and Swin call torch.meshgrid without indexing=, for its default.
    ("torch.meshgrid: in an upcoming release", UserWarning, r"torch\.functional"),
    # detectron2.model_zoo looks up its configs with pkg_resources, also for LazyConfigs.
    ("pkg_resources is deprecated as an API", UserWarning, r"detectron2\."),
    ("pkg_resources is deprecated as an API", DeprecationWarning, r"detectron2\."),
    # detectron2 makes tensors of bitmaps that it only reads.
    ("The given NumPy array is not writable", UserWarning, r"detectron2\.data\."),
    # torch.export reads its own files into tensors that it only reads.
    ("The given buffer is not writable", UserWarning, r"torch\.export\."),
)
_LOGS = (  # logger, part of the message
    # detectron2's poolers ask whether they are traced, by the old name of the function.
    ("torch.fx._symbolic_trace", "is_fx_tracing will return true for both"),
    # A machine with the CUDA toolkit and no GPU; MODEL.DEVICE has a message of its own.
    ("torch.utils.cpp_extension", "No CUDA runtime is found"),
    # detectron2's checkpointer has logged the path before, or a trainer that there is none.
    ("fvcore.common.checkpoint", "[Checkpointer] Loading from"),
    ("fvcore.common.checkpoint", "No checkpoint found. Initializing model from scratch"),
    ("detectron2.checkpoint.detection_checkpoint", "Loading from  ..."),
)
_ONCE = (  # logger, start of messages that are the same in each evaluation
    ("detectron2.data.dataset_mapper", "[DatasetMapper] Augmentations used in"),
    ("apa_det.data.lvis_format", "Loaded "),
)


def hide_known_messages() -> None:
    """Filter the messages in this process.

    A second call only lets messages that are shown once appear once more.
    """
    for message, category, module in _WARNINGS:
        warnings.filterwarnings("ignore", message, category, module)
    for name, text in _LOGS:
        _add(logging.getLogger(name), _Without(text))
    for name, text in _ONCE:
        _add(logging.getLogger(name), _Once(text))


def _add(logger: logging.Logger, added: "_Without") -> None:
    for known in list(logger.filters):
        if type(known) is type(added) and known.text == added.text:
            logger.removeFilter(known)
    logger.addFilter(added)


class _Without(logging.Filter):
    """Drops the messages that contain a text."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()


class _Once(_Without):
    """Drops messages that start with a text and have been logged before."""

    def __init__(self, text: str):
        super().__init__(text)
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.startswith(self.text):
            return True
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new
