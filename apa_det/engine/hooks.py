"""Training hooks: history of λ and κ, and the best checkpoint."""

import logging
import math
import os
import re
from collections.abc import Iterable, Sequence

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from detectron2.utils.file_io import PathManager
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..activation import APA
from ..analysis import layer_kinds, plot_parameter_history, read_parameter_history
from ..checkpoint import load_checkpoint
from ..data.frequency import FREQUENCY_LABELS
from ..data.stream import TrainLoader
from ..errors import UserError
from ..text import listed, printable
from ..utils.seeding import seed_all
from .buffers import BufferSnapshot
from .run_folder import EVALUATION_TIME
from .saving import AtomicCheckpointer

logger = logging.getLogger(__name__)


class PreciseBN(hooks.PreciseBN):
    """detectron2's hook with images and random numbers that depend on the iteration only.

    So a resumed training can repeat it. Only the statistics of batch norm change: other buffers,
    e.g. of losses, do not count its images. The images are those of ``trainer.job``.
    """

    def __init__(self, period: int, model: nn.Module, num_iter: int):
        """
        Args:
            period: iterations between updates; there is one in the last iteration too.
            model: a model with batch norm in training mode.
            num_iter: number of batches.
        """
        super().__init__(period, model, None, num_iter)

    def update_stats(self) -> None:
        job, iteration = self.trainer.job, self.trainer.iter
        if self._data_loader is None:
            self._data_loader = job.build_train_loader(num_workers=0)
        if isinstance(self._data_loader, TrainLoader):
            self._data_loader.start = iteration + 1
            self._data_iter = None
        seed_all(job.seed, 3, comm.get_rank(), iteration)
        buffers = BufferSnapshot(self._model)
        buffers.take()
        super().update_stats()
        layers = get_bn_modules(self._model)
        statistics = [(bn.running_mean.clone(), bn.running_var.clone()) for bn in layers]
        buffers.restore()
        with torch.no_grad():
            for bn, (mean, variance) in zip(layers, statistics, strict=True):
                bn.running_mean.copy_(mean)
                bn.running_var.copy_(variance)


class PeriodicWriter(hooks.PeriodicWriter):
    """detectron2's hook, which also writes the results of an evaluation at once."""

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        _, evaluated = self.trainer.storage.latest().get(EVALUATION_TIME, (None, None))
        due = done % self._period == 0 or done == self.trainer.max_iter
        if due or evaluated == self.trainer.iter:
            for writer in self._writers:
                writer.write()


class LambdaKappaWriter(HookBase):
    """Writes λ and κ of every APA and AGLU to the event storage, for TensorBoard and metrics.json.

    The scalars are ``apa/<layer>/lambda`` and ``apa/<layer>/kappa``, or, for layers with one pair
    per channel, ``apa/<layer>/lambda/mean``, ``…/min``, ``…/max`` and the same for κ. λ is clamped
    from below, as the layer uses it. If the model is sharded (FSDP), every process needs the hook.
    """

    def __init__(self, model: nn.Module, period: int):
        """
        Args:
            model: the model, in DistributedDataParallel or not.
            period: write every this many iterations, and in the last one.
        """
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self._layers = {name: m for name, m in model.named_modules() if isinstance(m, APA)}
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._layers and (done % self._period == 0 or done == self.trainer.max_iter):
            for name, value in self._scalars().items():
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)

    @torch.no_grad()
    def _scalars(self) -> dict[str, float]:
        scalars = {}
        for name, layer in self._layers.items():
            parameters = {
                "lambda": _unsharded(layer.lambda_param).clamp(min=layer.lambda_min),
                "kappa": _unsharded(layer.kappa_param),
            }
            for symbol, values in parameters.items():
                key = f"apa/{name}/{symbol}"
                if values.numel() == 1:
                    scalars[key] = values
                else:
                    scalars[f"{key}/mean"] = values.mean()
                    scalars[f"{key}/min"] = values.min()
                    scalars[f"{key}/max"] = values.max()
        numbers = torch.cat([v.reshape(1).float() for v in scalars.values()]).tolist()
        return dict(zip(scalars, numbers, strict=True))


def _unsharded(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


class LambdaKappaPlotter(HookBase):
    """Plots the history of λ and κ as ``apa_parameters.png`` in the output folder.

    It reads ``metrics.json``, which also has the iterations before a resume. Place the hook after
    ``PeriodicWriter``.
    """

    def __init__(self, model: nn.Module, output_dir: str, period: int):
        """
        Args:
            model: the model, in DistributedDataParallel or not.
            output_dir: the folder of ``metrics.json``.
            period: plot every this many iterations, and in the last one. 0: only in the last one.
        """
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self._kinds = layer_kinds(model)
        self._metrics_file = os.path.join(output_dir, "metrics.json")
        self._path = os.path.join(output_dir, "apa_parameters.png")
        self._period = period

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        due = done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0)
        if due and self._kinds and PathManager.isfile(self._metrics_file):
            history = read_parameter_history(self._metrics_file)
            try:
                if history:
                    plot_parameter_history(history, self._path, self._kinds)
            except UserError as error:  # e.g. the disk is full
                logger.warning("%s is not drawn: %s", os.path.basename(self._path), error)


class BestCheckpointer(hooks.BestCheckpointer):
    """Saves the best model by a metric as ``model_best.pth``, with the value of the metric.

    Unlike detectron2's hook, the file has no optimizer state and ``--resume`` never starts from it;
    a resumed training takes the best value so far from it. NaN is never the best. Place the hook
    after ``EvalHook``.
    """

    def __init__(
        self,
        eval_period: int,
        model: nn.Module,
        output_dir: str,
        metric: str,
        class_names: Sequence[str] | None = None,
        key: str = "metric",
    ):
        """
        Args:
            eval_period: iterations between evaluations, as for ``EvalHook``.
            model: the model, in DistributedDataParallel or not.
            output_dir: the folder of ``model_best.pth``.
            metric: a metric for which higher is better, e.g. "segm/APr".
            class_names: classes of the model, saved with it.
            key: config key of the metric, for a warning if it has no value.
        """
        checkpointer = _BestModelCheckpointer(model, output_dir, metric, class_names)
        super().__init__(eval_period, checkpointer, metric)
        self.metric = metric
        self._path = os.path.join(output_dir, "model_best.pth")
        self._key, self._has_warned = key, False

    def before_train(self) -> None:
        if self.trainer.start_iter == 0 or not PathManager.isfile(self._path):
            return
        try:
            best = load_checkpoint(PathManager.get_local_path(self._path))
            if best.get("metric") != self.metric:
                return
            value, iteration = best.get("value"), best.get("iteration")
            if type(value) not in (int, float) or not math.isfinite(value):
                raise UserError(f"{self._path}: value must be a number, got {printable(value)}.")
            if type(iteration) is not int or iteration < 0:
                raise UserError(
                    f"{self._path}: iteration must be an integer, got {printable(iteration)}."
                )
        except UserError as error:
            logger.warning("%s The next evaluation replaces this file.", error)
            return
        self.best_metric, self.best_iter = value, iteration
        logger.info("Best %s so far: %.4f", self.metric, self.best_metric)

    def _best_checking(self) -> None:
        latest = self.trainer.storage.latest()
        values = {name: value for name, (value, _) in latest.items() if not math.isnan(value)}
        if self.metric in values:
            super()._best_checking()
        elif not self._has_warned:
            self._has_warned = True
            logger.warning("%s", _no_value(self.metric, self._key, values))


def _no_value(metric: str, key: str, known: Iterable[str]) -> str:
    """Return why a metric has no value, and what to set, in one warning.

    Args:
        metric: its name.
        key: its config key.
        known: names of scalars with a value.
    """
    folder, _, name = metric.rpartition("/")
    others = [n for n in known if n.startswith(f"{folder}/AP") and "-" not in n]  # no class
    if not others:
        return (
            f"{key} is {metric}, which has no value: the evaluation does not compute it, or the "
            f"test set has no object to evaluate. model_best.pth is not saved. Set {key} to one of "
            'the metrics in metrics.json, or to "".'
        )
    match = re.match("A[PR]([^_@]*)", name)
    suffix = match[1] if match else ""
    sizes = {"s": "small", "m": "medium", "l": "large"}
    what = f"object of a class of the group {suffix}"
    if suffix in FREQUENCY_LABELS:
        what = f"object of a {FREQUENCY_LABELS[suffix]} class"
    elif suffix in sizes:
        what = f"{sizes[suffix]} object"
    elif suffix in ("", "50", "75"):
        what = "object to evaluate"
    return (
        f"{key} is {metric}, which is NaN because the test set has no {what}: model_best.pth is "
        f"not saved. Set {key} to one of {listed(sorted(others))}, or use a test set that has them."
    )


class _BestModelCheckpointer(AtomicCheckpointer):
    """Saves the model with the latest value of a metric, and does not tag it as the last one."""

    def __init__(
        self, model: nn.Module, save_dir: str, metric: str, class_names: Sequence[str] | None
    ):
        super().__init__(model, save_dir)
        self.metric = metric
        self._extra = {} if class_names is None else {"class_names": list(class_names)}

    def save(self, name: str, **kwargs) -> None:
        value, _ = get_event_storage().latest()[self.metric]
        super().save(name, metric=self.metric, value=value, **self._extra, **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass
