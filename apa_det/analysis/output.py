"""Writing the figures and the table of an analysis."""

import os
from pathlib import Path

from ..errors import UserError
from ..text import write_csv
from ..utils.atomic_files import open_atomic, writing
from ..utils.plotting import DPI
from .inputs import ACTIVATION, CLASS_SCORE, GATE
from .layer_figures import distributions, summary
from .layer_statistics import Analysis

_FILES = {GATE: "gates.png", ACTIVATION: "activations.png", CLASS_SCORE: "class_scores.png"}


def write_analysis(analysis: Analysis, folder: str | os.PathLike) -> list[Path]:
    """Write ``summary.png``, ``layers.csv``, and a figure for each kind of layer in the model.

    Returns:
        The paths of the files.

    Raises:
        UserError: the analysis has no layers, or a file cannot be written.
    """
    if not analysis.layers:
        raise UserError(
            "The model has nothing to analyze: it calls no gate or activation module. Functions "
            "called in forward (F.relu) are not analyzed."
        )
    folder = Path(folder)
    figures = {"summary.png": summary(analysis)}
    figures |= {name: distributions(analysis, kind) for kind, name in _FILES.items()}
    rows, written = analysis.rows(), []
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            if figure is not None:
                figure.savefig(folder / name, dpi=DPI)
                written.append(folder / name)
        with open_atomic(folder / "layers.csv", newline="") as file:
            write_csv(file, list(rows[0]), (row.values() for row in rows))
    return [*written, folder / "layers.csv"]
