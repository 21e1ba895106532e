"""Copy-paste augmentation: instances of scarce classes are pasted into training images."""

from .settings import CopyPaste
