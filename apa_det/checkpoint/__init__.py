from ..data.name_matching import match_classes
from .averaging import average_checkpoints
from .conversion import Conversion, TensorRecord, adapt, convert, reverse
from .layouts import Layout, recognize, select_state
from .reading import load_checkpoint
from .transfer import (
    ClassTransfer,
    read_class_names,
    stored_class_names,
    transfer_rows,
)
