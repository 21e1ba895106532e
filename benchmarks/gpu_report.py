"""The results of a section of gpu_check.py."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Report:
    """The results of a section.

    Attributes:
        device: device to run on.
        small: run in a form that takes seconds on a CPU.
        deadline: value of ``time.monotonic`` after which optional parts are skipped.
        rows: the results.
        file: written after each row, so that they outlive the process. None: no file.
    """

    device: torch.device
    small: bool
    deadline: float
    rows: list[dict] = field(default_factory=list)
    file: Path | None = None

    def _add(self, **row) -> None:
        self.rows.append(row)
        if self.file is not None:
            self.file.write_text(json.dumps({"rows": self.rows}))

    def check(self, name: str, error: float, limit: float) -> None:
        """Record an error, which must be at most ``limit``; NaN is not."""
        self._add(name=name, value=error, limit=limit, ok=error <= limit)

    def expect(self, name: str, ok: bool, note: str = "") -> None:
        """Record a condition that must hold."""
        self._add(name=name, ok=bool(ok), note=note)

    def value(self, name: str, value: float, unit: str, note: str = "") -> None:
        """Record a measurement."""
        self._add(name=name, value=value, unit=unit, note=note)

    def skip(self, name: str, reason: str) -> None:
        """Record that something was not run."""
        self._add(name=name, note=f"skipped: {reason}")

    def has_time(self, name: str) -> bool:
        """Return whether time is left; record that ``name`` is skipped otherwise."""
        if time.monotonic() < self.deadline:
            return True
        self.skip(name, "the time is up")
        return False

    def free_bytes(self) -> float:
        """Return the free memory of the device; in the small form as if there were little."""
        if self.small or self.device.type != "cuda":
            return 1e9
        return torch.cuda.mem_get_info(self.device)[0]
