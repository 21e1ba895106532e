"""The hook that writes the figures of a training into its output folder."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from detectron2.engine import HookBase
from PIL import Image

from ...data.catalog import get_dataset_records
from ...data.class_names import dataset_groups
from ...data.frequency import FrequencyGroups
from ...data.stream import TrainLoader
from ...errors import UserError
from ...utils.atomic_files import make_folder_of, open_atomic
from ...utils.seeding import seeded
from ..job import Job
from ..step import StepTrainer
from ..training_history import TrainingHistory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .labels_figure import TrainingLabels

logger = logging.getLogger(__name__)

RESULTS, BATCH = "results.png", "train_batch.png"
LABELS, PREDICTIONS = "labels.png", "val_predictions.png"


class FigureWriter(HookBase):
    """Writes the figures of a training.

    ``labels.png`` and ``train_batch.png``, the first batch, when it starts; ``results.png`` after
    each evaluation; ``val_predictions.png`` at the end. They use no random numbers of the training,
    and no batch of its loader but those that the model gets.

    A figure that cannot be written, e.g. because the disk is full, is one warning. Any other
    exception is logged with its traceback and kept in ``failure``, so that the training goes on.
    Only for the main process. Place the hook last.

    Attributes:
        failure: the first exception that is not a UserError; None: none.
    """

    def __init__(self, job: Job, step: StepTrainer):
        """
        Args:
            job: the job of the training.
            step: its step, whose first batch is drawn.
        """
        self._job, self._step = job, step
        self._period = job.eval_period or job.checkpoint_period
        self._labels: TrainingLabels | None = None
        self.failure: Exception | None = None

    def before_train(self) -> None:
        if self.trainer.start_iter < self.trainer.max_iter:
            self._write(LABELS, self._draw_labels)
            self._step.on_batch = self._write_batch

    def _draw_labels(self) -> "Figure | None":
        from .labels_figure import draw_labels

        labels = self._read_labels()
        if not len(labels.info):
            raise UserError(
                f"{self._job.KEYS['train_datasets']} names no dataset, and the training loader is "
                "not that of apa_det."
            )
        return draw_labels(labels)

    def _read_labels(self) -> "TrainingLabels":
        from .labels_figure import read_labels

        if self._labels is None:
            loader, names = self._step.data_loader, self._job.train_datasets
            if isinstance(loader, TrainLoader):
                dataset = loader.dataset
            else:
                dataset = get_dataset_records(names, check_consistency=False) if names else []
            self._labels = read_labels(dataset, names, self._job.groups)
        return self._labels

    def _write_batch(self, batch: Sequence[dict]) -> None:
        self._step.on_batch = None
        self._write(BATCH, lambda: self._draw_batch(batch))

    def _draw_batch(self, batch: Sequence[dict]) -> np.ndarray:
        from .image_figures import draw_batch

        formats = (
            getattr(getattr(self._step.data_loader, "mapper", None), "image_format", None),
            getattr(self._step.model, "input_format", None),
        )
        image_format = next(filter(None, formats), "BGR")
        return draw_batch(batch, image_format, self._read_labels().info)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._period > 0 and done % self._period == 0 and done < self.trainer.max_iter:
            self._write(RESULTS, self._draw_results)

    def _draw_results(self) -> "Figure | None":
        from .results_figure import draw_results

        return draw_results(TrainingHistory.read(self._job.output_dir), self._groups())

    def _groups(self) -> FrequencyGroups:
        names = self._job.test_datasets
        if self._job.groups is not None:
            return self._job.groups
        return dataset_groups(names[0]) if names else FrequencyGroups.lvis()

    def after_train(self) -> None:
        self._step.on_batch = self._labels = None
        if self.trainer.iter + 1 >= self.trainer.max_iter:  # not after an error
            self._write(RESULTS, self._draw_results)
            self._write(PREDICTIONS, self._draw_predictions)

    def _draw_predictions(self) -> np.ndarray | None:
        from .image_figures import draw_predictions_of

        name = next(iter(self._job.annotated_test_datasets()), None)
        if name is None:
            return None
        with self.trainer.evaluated_model() as model:
            return draw_predictions_of(self._job, model, name)

    def _write(self, name: str, draw: "Callable[[], Figure | np.ndarray | None]") -> None:
        try:
            with seeded(0):
                figure = draw()
                if figure is not None:
                    _save(figure, os.path.join(self._job.output_dir, name))
        except UserError as error:
            logger.warning("%s is not drawn: %s", name, error)
        except Exception as error:
            logger.exception("%s is not drawn. The training goes on.", name)
            self.failure = self.failure or error


def _save(figure: "Figure | np.ndarray", path: str) -> None:
    from ...utils.plotting import DPI

    make_folder_of(path)
    with open_atomic(path, "wb") as file:
        if isinstance(figure, np.ndarray):
            Image.fromarray(figure).save(file, format="png")
        else:
            figure.savefig(file, format="png", dpi=DPI)
