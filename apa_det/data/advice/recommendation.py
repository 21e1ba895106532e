"""The recipe that suits a dataset, with the reasons."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from ...utils.progress import heartbeat
from ..frequency import FREQUENCY_LABELS
from ..recipe import Setting, StartingWeights, long_tail_settings
from .dataset_statistics import TRAIN_SIDES, DatasetStatistics, imbalance, measure
from .sampler_choices import SamplerChoice, sampler_choices

LIMITS = (1, 10, 100)  # images
_LVIS_THRESHOLD = 0.001
_SMALL, _MANY_SMALL = 16, 0.25  # pixels of a side in training; share of the boxes
_NMS, _MANY_OVERLAPS = 0.5, 0.02  # IoU; share of the boxes
_DETECTIONS = 300  # per image, of a written config


class Idea(NamedTuple):
    """Something further to try.

    Attributes:
        keys: config keys with values, or a command.
        reason: why this dataset calls for it.
    """

    keys: str
    reason: str


@dataclass(frozen=True)
class Advice:
    """A recommendation for a training set. ``str()`` formats it as tables.

    Attributes:
        json_file: the training set.
        statistics: its contents.
        choices: an epoch of each sampler; empty without annotations.
        recipe: what is recommended, in a few words.
        settings: the recommended sampler, class score and loss, as in a written config; empty
            without annotations.
        ideas: further things to try.
        notes: what else to know of the dataset.
    """

    json_file: str
    statistics: DatasetStatistics
    choices: list[SamplerChoice]
    recipe: str
    settings: list[Setting]
    ideas: list[Idea] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def facts(self) -> list[tuple[str, str]]:
        """Return pairs of a quantity and its value."""
        return [*_facts(self.statistics)]

    def choice_rows(self) -> list[list[str]]:
        """Return a row for each sampler, see :data:`CHOICE_COLUMNS`."""
        groups = {g: self.statistics.by_group(g) for g in FREQUENCY_LABELS}
        recommended = self.recommended("DATALOADER.SAMPLER_TRAIN")
        rows = []
        for choice in self.choices:
            name = choice.name + (f", {choice.setting}" if choice.setting else "")
            name += " (recommended)" if choice.name == recommended else ""
            if choice.fault:
                rows.append([name, "cannot be used", *[""] * (len(CHOICE_COLUMNS) - 2)])
                continue
            instances = [choice.instance_counts[members].sum() for members in groups.values()]
            seen = choice.image_counts[choice.image_counts > 0]
            rows.append(
                [
                    name,
                    _number(choice.num_images),
                    *map(_number, instances),
                    _number(seen.min()),
                    _number(imbalance(choice.image_counts)),
                ]
            )
        return rows

    def recommended(self, key: str) -> object:
        """Return the recommended value of a config key, or None."""
        return next((s.value for s in self.settings if s.key == key), None)

    def __str__(self) -> str:
        parts = [self.json_file, tabulate(self.facts(), tablefmt="plain", disable_numparse=True)]
        if self.choices:
            parts.append("An epoch of each sampler, as expected:")
            parts.append(tabulate(self.choice_rows(), CHOICE_COLUMNS, disable_numparse=True))
        parts.append(f"Recommended: {self.recipe}.")
        parts.append("\n".join(f"  {s.key} {s.value}  # {s.reason}" for s in self.settings))
        parts += self.notes
        if self.ideas:
            ideas = "\n".join(f"  {keys}\n    {reason}" for keys, reason in self.ideas)
            parts.append(f"Also worth a try, one at a time:\n{ideas}")
        return "\n\n".join(filter(None, parts))


CHOICE_COLUMNS = (
    "sampler",
    "images",
    *(f"{label}\ninstances" for label in FREQUENCY_LABELS.values()),
    "images of the\nleast seen class",
    "imbalance",
)


@heartbeat("Measuring the dataset")
def advise(json_file: str, dataset: dict, start: StartingWeights) -> Advice:
    """
    Recommend a recipe for a training set.

    Args:
        json_file: its file, for the title.
        dataset: content of a valid LVIS-format file, whose categories have ``frequency``.
        start: the starting weights.
    """
    statistics = measure(dataset)
    num_images = statistics.counts.num_images
    notes = [*_notes(statistics)]
    if not num_images:
        recipe = "none, as the dataset has no annotations: there is nothing to learn"
        return Advice(json_file, statistics, [], recipe, [], notes=notes)
    settings = long_tail_settings(dataset, num_images, start)
    values = {setting.key: setting.value for setting in settings}
    threshold = values.get("DATALOADER.REPEAT_THRESHOLD", _LVIS_THRESHOLD)
    return Advice(
        json_file,
        statistics,
        sampler_choices(statistics, threshold),
        _recipe(values),
        settings,
        [*_ideas(statistics, is_plain=values["DATALOADER.SAMPLER_TRAIN"] == "TrainingSampler")],
        notes,
    )


def _recipe(values: dict[str, object]) -> str:
    head = "MODEL.ROI_BOX_HEAD"
    score = values.get(f"{head}.CLASS_SCORE")
    names = {"apa": "APA", "gumbel": "Gumbel"}
    what = f"{names.get(score, score)} class scores" if score else "the class scores of the weights"
    loss = " and DropLoss" if values.get(f"{head}.USE_DROP_LOSS") else ""
    if values["DATALOADER.SAMPLER_TRAIN"] == "TrainingSampler":
        return f"plain training, without resampling, with {what}"
    return f"repeat-factor sampling, {what}{loss}"


def _facts(statistics: DatasetStatistics) -> Iterator[tuple[str, str]]:
    counts = statistics.counts
    classes, total = len(statistics.names), len(statistics.classes)
    yield "images", f"{statistics.num_images:,}"
    yield "images without annotations", f"{statistics.num_images - counts.num_images:,}"
    yield "annotations", f"{total:,} ({'boxes and masks' if statistics.has_masks else 'boxes'})"
    yield "classes", f"{classes:,}"
    for group, label in FREQUENCY_LABELS.items():
        yield f"{label} classes", f"{statistics.by_group(group).sum():,}"
    for limit in LIMITS:
        what = "without images" if limit == 1 else f"in fewer than {limit} images"
        yield f"classes {what}", _share(statistics.num_below(limit), classes)
    if not total:
        return
    yield "imbalance (images of the most frequent class / rarest)", _number(statistics.imbalance)
    objects = statistics.objects_per_image
    yield "objects per annotated image", f"{objects.mean():.1f} on average, {objects.max():,} most"
    for name, values in (
        ("another box", statistics.overlaps),
        ("another box of its class", statistics.same_class_overlaps),
    ):
        text = f"boxes that overlap {name} at IoU > {_NMS}"
        yield text, _share(int((values > _NMS).sum()), total)
    yield (
        "size of a box (square root of its share of the image)",
        f"median {np.median(statistics.relative_sizes):.1%}",
    )
    small = int((statistics.train_sides < _SMALL).sum())
    text = f"boxes with a side under {_SMALL} pixels at {TRAIN_SIDES[0]} x {TRAIN_SIDES[1]}"
    yield text, _share(small, total)


def _notes(statistics: DatasetStatistics) -> Iterator[str]:
    unseen = statistics.num_below(1)
    if 0 < unseen < len(statistics.names):
        yield (
            f"Without annotations: {_counted(unseen, 'class', 'es')}, which the model cannot "
            "learn, and of which only false positives count. Remove them unless other data will "
            "follow."
        )
    single = int((statistics.image_counts == 1).sum())
    if single:
        yield (
            f"In one image only: {_counted(single, 'class', 'es')}. A split cannot have them in "
            "both parts, so their AP cannot be measured."
        )
    if 0 < statistics.counts.num_images < 100:
        images = _counted(statistics.counts.num_images, "annotated image")
        yield (
            f"With {images}, differences between recipes are smaller than those between seeds: "
            "collect more images first."
        )


def _ideas(statistics: DatasetStatistics, *, is_plain: bool) -> Iterator[Idea]:
    counts, total = statistics.image_counts, len(statistics.classes)
    scarce = int(((counts > 0) & ~statistics.by_group("f")).sum())
    if not is_plain:
        which = f"{_counted(scarce, 'class', 'es')} with few examples, rare or common"
        if statistics.has_masks:
            yield Idea("INPUT.COPY_PASTE.ENABLED True", f"{which}: more copies on other images.")
        if scarce:
            yield Idea(
                "SOLVER.DECOUPLED.MAX_ITER (a tenth of SOLVER.MAX_ITER) "
                "SOLVER.DECOUPLED.REPLAY_SHARE 0.1",
                f"{which}: a second stage trains the classifier with class-aware sampling, and "
                "replays their features.",
            )
        yield Idea(
            "apa-det calibrate --config-file CONFIG --method NorCal",
            f"the most frequent class is in {_number(statistics.imbalance)} times as many images "
            "as the rarest: scores of frequent classes are too high. It needs no training.",
        )
    overlapping = (statistics.same_class_overlaps > _NMS).sum()
    if overlapping > _MANY_OVERLAPS * total:
        yield Idea(
            "MODEL.ROI_HEADS.NMS_THRESH_TEST 0.6",
            f"{overlapping / total:.0%} of the boxes overlap another one of their class at IoU > "
            f"{_NMS}, where NMS at {_NMS} drops true positives.",
        )
    small = (statistics.train_sides < _SMALL).sum()
    if small > _MANY_SMALL * total:
        yield Idea(
            "MODEL.ANCHOR_GENERATOR.SIZES [[16], [32], [64], [128], [256]]",
            f"{small / total:.0%} of the boxes have a side under {_SMALL} pixels in training, and "
            "the smallest anchor is 32. Larger images (INPUT.MIN_SIZE_TRAIN) help too.",
        )
    most = int(statistics.objects_per_image.max())
    if most > _DETECTIONS:
        yield Idea(
            f"TEST.DETECTIONS_PER_IMAGE {-(-most // 100) * 100}",
            f"an image has {most:,} objects, more than the {_DETECTIONS} detections of the config.",
        )


def _counted(number: int, noun: str, plural: str = "s") -> str:
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def _share(number: int, total: int) -> str:
    return f"{number:,} ({number / total:.0%})" if total else f"{number:,}"


def _number(value: float) -> str:
    """Format a number: integers from 10 on, else with up to two digits after the point."""
    return "" if np.isnan(value) else f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
