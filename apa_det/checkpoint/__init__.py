from .conversion import Account, Conversion, adapt, convert, reverse
from .layouts import Layout, recognize, select_state
from .reading import load_checkpoint

__all__ = [
    "Account",
    "Conversion",
    "Layout",
    "adapt",
    "convert",
    "load_checkpoint",
    "recognize",
    "reverse",
    "select_state",
]
