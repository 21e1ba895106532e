"""The settings of copy-paste."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ...errors import UserError
from ...text import shown

SAMPLINGS = ("uniform", "repeat_factor", "rare_first")
_LAZY = "dataloader.train.copy_paste"


@dataclass(frozen=True)
class CopyPaste:
    """The settings of copy-paste, ``INPUT.COPY_PASTE`` or ``dataloader.train.copy_paste``.

    "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation" (Ghiasi et
    al., CVPR 2021, section 3), with instances drawn by class instead of images.

    Args:
        enabled: whether to paste.
        sampling: probability of a class: "uniform", proportional to its repeat factor
            ("repeat_factor"), or inversely proportional to its number of images ("rare_first").
        prob: probability that instances are pasted into an image.
        max_instances: their number is uniform from 1 to this one.
        scale: limits of the uniform factor of their size.
        flip: probability to flip an instance horizontally.
        blend: standard deviation in pixels of the Gaussian that blends their edges; 0: no blending.
        min_visible: drop instances of which a smaller fraction stays visible.
        cache_mb: memory for crops of scarce classes, in MB per process that loads images.

    Raises:
        UserError: a value is not allowed.
    """

    enabled: bool = False
    sampling: str = "rare_first"
    prob: float = 0.4
    max_instances: int = 2
    scale: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    blend: float = 0.0
    min_visible: float = 0.2
    cache_mb: float = 128

    def __post_init__(self):
        object.__setattr__(self, "scale", tuple(self.scale))  # of a config: a list
        if self.sampling not in SAMPLINGS:
            self._reject("sampling", f"one of {', '.join(SAMPLINGS)}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            self._reject("scale", "(low, high) with 0 < low <= high")
        for name in ("prob", "flip", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                self._reject(name, "in [0, 1]")
        for name, low in (("max_instances", 1), ("blend", 0), ("cache_mb", 0)):
            if not getattr(self, name) >= low:
                self._reject(name, f">= {low}")

    def _reject(self, name: str, must_be: str) -> None:
        raise UserError(
            f"INPUT.COPY_PASTE.{name.upper()} ({_LAZY}.{name} in a LazyConfig) must be {must_be}; "
            f"got {shown(getattr(self, name))}."
        )

    @classmethod
    def of(cls, values: "Mapping | CopyPaste | None") -> "CopyPaste":
        """Return the settings of a group of keys; by default, nothing is pasted.

        Raises:
            UserError: a key is unknown, or a value is not allowed.
        """
        if isinstance(values, CopyPaste):
            return values
        names = [field.name for field in fields(cls)]
        values = {str(name).lower(): value for name, value in (values or {}).items()}
        if unknown := [name for name in values if name not in names]:
            raise UserError(f"{_LAZY} has no key {unknown[0]}; its keys are {', '.join(names)}.")
        return cls(**values)
