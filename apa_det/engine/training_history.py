"""The scalars of a training, from its ``metrics.json``."""

import os
from dataclasses import dataclass

from detectron2.utils.file_io import PathManager

from .run_folder import EVALUATION_TIME, METRICS, parse_metrics

_MAIN = ("segm/AP", "bbox/AP")


@dataclass(frozen=True)
class TrainingHistory:
    """The scalars of a training.

    Attributes:
        scalars: values by number of finished iterations, ascending.
    """

    scalars: dict[int, dict[str, float]]

    @staticmethod
    def read(folder: str) -> "TrainingHistory":
        """Read the ``metrics.json`` of an output folder; there are no scalars if it is missing.

        Later lines replace earlier ones of the same iteration; incomplete lines are skipped.
        """
        path = os.path.join(folder, METRICS)
        scalars: dict[int, dict[str, float]] = {}
        if not PathManager.isfile(path):
            return TrainingHistory(scalars)
        with PathManager.open(path, "rb") as file:
            for values in map(parse_metrics, file):
                if type(iteration := values.pop("iteration", None)) is int:
                    # The results after the last iteration have a line without losses.
                    is_last = EVALUATION_TIME in values and "total_loss" not in values
                    scalars.setdefault(iteration + (not is_last), {}).update(values)
        return TrainingHistory(dict(sorted(scalars.items())))

    def names(self) -> list[str]:
        """Return the names of all scalars, in order of appearance."""
        return list(dict.fromkeys(name for values in self.scalars.values() for name in values))

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return the iterations and the values of a scalar."""
        points = [(i, values[name]) for i, values in self.scalars.items() if name in values]
        return [i for i, _ in points], [value for _, value in points]

    def main_metric(self) -> str | None:
        """Return the most evaluated AP: of masks, else of boxes; None if there is none."""
        names = self.names()
        for metric in _MAIN:
            found = [n for n in names if n == metric or n.endswith(f"/{metric}")]
            if found:
                return max(found, key=lambda name: len(self.series(name)[0]))
        return None

    def best(self, metric: str) -> tuple[int, float] | None:
        """Return the number of iterations with the best value of a metric, and the value.

        The first of equal ones; None if it was never defined.
        """
        iterations, values = self.series(metric)
        if not values:
            return None
        value = max(values)
        return iterations[values.index(value)], value
