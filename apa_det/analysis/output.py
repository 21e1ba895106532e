"""Writing an analysis: figures and a table."""

import csv
import os
from pathlib import Path

from ..utils.plotting import DPI
from .inputs import ACTIVATION, CLASS_SCORE, GATE
from .layer_figures import distributions, summary
from .layer_statistics import Analysis

__all__ = ["write_analysis"]

_FILES = {GATE: "gates.png", ACTIVATION: "activations.png", CLASS_SCORE: "class_scores.png"}


def write_analysis(analysis: Analysis, folder: str | os.PathLike) -> list[Path]:
    """Write ``summary.png``, ``layers.csv``, and a figure for each kind of layer that there is.

    Returns:
        The files.

    Raises:
        ValueError: the analysis is of no layer.
    """
    if not analysis.layers:
        raise ValueError(
            "The model ran no gate or activation that is a module, so there is nothing to analyze."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"summary.png": summary(analysis)}
    figures |= {name: distributions(analysis, kind) for kind, name in _FILES.items()}
    written = []
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / name, dpi=DPI)
            written.append(folder / name)
    rows = analysis.rows()
    with open(folder / "layers.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [*written, folder / "layers.csv"]
