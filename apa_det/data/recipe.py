"""A training config for a dataset, with settings chosen by the data."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from ..errors import MissingFileError, UserError
from ..utils.json_files import writing
from .frequency import complete_categories

_PACKAGE = Path(__file__).parents[1]
_LVIS_IMAGES = 100_000  # for the epochs of its published recipe
_LVIS_EPOCHS, _MOST_EPOCHS = 24, 100
_MIN_PUBLISHED_SIDE = 32  # DATALOADER.MIN_IMAGE_SIDE of the published recipes
_MANY_CLASSES = 300
_SIZES = [640, 672, 704, 736, 768, 800]


class Setting(NamedTuple):
    """A line of a config."""

    key: str
    value: object
    reason: str


class StartingWeights(NamedTuple):
    """Where training starts from, and the model that fits.

    Attributes:
        base: the base config: a path relative to the shipped configs, or an absolute one.
        settings: of the model.
        score: class score and loss to keep, with which the weights were trained: "gumbel" (with
            DropLoss) or "base" (those of ``base``). "": chosen by the data.
        random: nothing is pretrained.
    """

    base: str
    settings: tuple[Setting, ...]
    score: Literal["", "gumbel", "base"] = ""
    random: bool = False


class RegisteredFile(NamedTuple):
    """An LVIS-format dataset for ``DATASETS.LVIS_FORMAT``.

    Attributes:
        json_file: its file.
        image_root: folder that file names are relative to.
        content: content of the file.
    """

    json_file: str
    image_root: str
    content: dict


def configs_folder() -> Path:
    """Return the folder of the shipped configs: that of the wheel, or of the checkout.

    Raises:
        MissingFileError: apa_det was installed without them.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "Base-RCNN-FPN.yaml").is_file():
            return folder
    raise MissingFileError(
        f"The configs of apa_det are neither in {_PACKAGE} nor beside it: install apa_det again."
    )


def has_masks(dataset: dict) -> bool:
    """Return True if the annotations have masks."""
    return any(annotation.get("segmentation") for annotation in dataset["annotations"])


def class_names(dataset: dict) -> list[str]:
    """Return the class names of a dataset, in the order of the model's classes."""
    return [c["name"] for c in sorted(dataset["categories"], key=lambda c: c["id"])]


def choose_settings(
    train: dict, val: dict | None, start: StartingWeights, *, num_gpus: int = 1
) -> list[Setting]:
    """
    Choose the settings of a training from its data.

    Args:
        train: training set, content of an LVIS-format file.
        val: test set with the same classes, or None.
        start: the starting weights.
        num_gpus: number of GPUs, or of processes on the CPU.

    Raises:
        UserError: the training set has no annotations, or the sets have different classes.
    """
    names = class_names(train)
    if val is not None and class_names(val) != names:
        raise UserError(
            "The training and the validation set must have the same classes with ids in the same "
            "order: convert the validation set with --count-from and the training set."
        )
    num_images = len({annotation["image_id"] for annotation in train["annotations"]})
    if not num_images:
        raise UserError("The training set has no annotations: there is nothing to learn.")
    masks = has_masks(train)
    return [
        *start.settings,
        Setting("MODEL.MASK_ON", masks, "the annotations have masks" if masks else "no masks"),
        Setting("MODEL.ROI_HEADS.NUM_CLASSES", len(names), "of the training set"),
        Setting("INPUT.MIN_SIZE_TRAIN", _SIZES, "a random scale, as for LVIS"),
        *_small_images(train),
        *_long_tail(train, num_images, start),
        *_schedule(num_images, start, num_gpus, tested=val is not None),
        *_evaluation(val),
    ]


def _small_images(train: dict) -> list[Setting]:
    """Keep small images, which the published recipes leave out."""
    sides = [
        image[side] for image in train["images"] for side in ("width", "height") if side in image
    ]
    smallest = min(sides, default=_MIN_PUBLISHED_SIDE)
    if smallest >= _MIN_PUBLISHED_SIDE:
        return []
    why = f"keep all images: the smallest has a side of {smallest}"
    return [Setting("DATALOADER.MIN_IMAGE_SIDE", 0, why)]


def _long_tail(train: dict, num_images: int, start: StartingWeights) -> list[Setting]:
    counted = _with_counts(train)
    scarce = [c["image_count"] for c in counted if c["frequency"] in ("r", "c")]
    most = max(scarce, default=0)
    head = "MODEL.ROI_BOX_HEAD"
    if not most:
        why = "no class is rare or common"
        settings = [Setting("DATALOADER.SAMPLER_TRAIN", "TrainingSampler", why)]
        return settings + [Setting(f"{head}.CLASS_SCORE", "softmax", why)] * (not start.score)
    threshold = _rounded(min(most / num_images, 0.1), num_images)
    settings = [
        Setting(
            "DATALOADER.SAMPLER_TRAIN",
            "RepeatFactorTrainingSampler",
            f"{len(scarce)} of {len(counted)} classes are rare or common",
        ),
        Setting(
            "DATALOADER.REPEAT_THRESHOLD",
            threshold,
            "images of classes in a smaller fraction of the images are repeated",
        ),
    ]
    score = start.score or ("apa" if len(counted) < _MANY_CLASSES else "gumbel")
    if score == "apa":
        settings.append(Setting(f"{head}.CLASS_SCORE", "apa", "for long-tailed classes"))
    if score == "gumbel":
        published = "as published for the 1,203 classes of LVIS"
        settings += [
            Setting(f"{head}.CLASS_SCORE", "gumbel", published),
            Setting(f"{head}.USE_DROP_LOSS", True, published),
            Setting(
                f"{head}.DROP_LOSS_THRESHOLD",
                _rounded((most + 0.5) / num_images, num_images),
                "rare and common classes get fewer negatives",
            ),
            Setting(f"{head}.LOGIT_CLAMP", 10.0, published),
            Setting(f"{head}.PREDICTOR_WEIGHT_INIT", 0.001, published),
            Setting(f"{head}.PREDICTOR_BIAS_INIT", -2.0, published),
        ]
    return settings


def _with_counts(dataset: dict) -> list[dict]:
    counted = {**dataset, "categories": [dict(c) for c in dataset["categories"]]}
    complete_categories(counted)
    return counted["categories"]


def _rounded(share: float, num_images: int) -> float:
    """Round a fraction of the images, by less than half an image."""
    return round(share, len(str(num_images)) + 1)


def _schedule(
    num_images: int, start: StartingWeights, num_gpus: int, tested: bool
) -> list[Setting]:
    batch = num_gpus * max(1, min(4, 16 // num_gpus))
    epochs = min(_LVIS_EPOCHS * max(1, math.sqrt(_LVIS_IMAGES / num_images)), _MOST_EPOCHS)
    epochs *= 3 if start.random else 1
    iterations = max(500, math.ceil(epochs * num_images / batch))
    period = math.ceil(iterations / 10)
    why = f"{iterations * batch / num_images:,.0f} epochs of {num_images:,} images"
    settings = [
        Setting("SOLVER.REFERENCE_WORLD_SIZE", num_gpus, "more processes scale what follows"),
        Setting("SOLVER.IMS_PER_BATCH", batch, f"{batch // num_gpus} images per GPU"),
        Setting("SOLVER.BASE_LR", 0.02 * batch / 16, "0.02 for 16 images, by the linear rule"),
        Setting("SOLVER.MAX_ITER", iterations, why + (", from random weights" * start.random)),
        Setting(
            "SOLVER.STEPS",
            [iterations * 2 // 3, iterations * 11 // 12],
            "decrease the learning rate at 2/3 and 11/12, as for LVIS",
        ),
        Setting("SOLVER.WARMUP_ITERS", min(1000, period), "at most a tenth of the training"),
        Setting("SOLVER.CHECKPOINT_PERIOD", period, "10 checkpoints"),
    ]
    if tested:
        settings.append(Setting("TEST.EVAL_PERIOD", period, "10 evaluations"))
    return settings


def _evaluation(val: dict | None) -> list[Setting]:
    if val is None:
        return []
    settings = [
        Setting("TEST.DETECTIONS_PER_IMAGE", 300, "as for LVIS"),
        Setting("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0001, "keep the low scores of rare classes"),
    ]
    if len(val["images"]) > 2000:
        why = f"during training, 1,000 of {len(val['images']):,} images; all after it"
        settings.append(Setting("TEST.SUBSET", 1000, why))
    return settings


def write_config(
    output: str | os.PathLike,
    train: RegisteredFile,
    val: RegisteredFile | None,
    start: StartingWeights,
    *,
    num_gpus: int = 1,
) -> None:
    """
    Write a yaml config that trains on a dataset, with :func:`choose_settings`.

    Each line says why. All paths are absolute.

    Raises:
        UserError: see :func:`choose_settings`, or the file cannot be written.
    """
    output = Path(output)
    name = output.stem
    sets = {f"{name}_train": train} | ({f"{name}_val": val} if val else {})
    tests = [f"{name}_val"] if val else []
    settings = [
        Setting(
            "DATASETS.LVIS_FORMAT",
            [[key, *map(os.path.abspath, file[:2])] for key, file in sets.items()],
            "name, file, folder of the images",
        ),
        Setting("DATASETS.TRAIN", [f"{name}_train"], "see LVIS_FORMAT"),
        Setting("DATASETS.TEST", tests, "see LVIS_FORMAT" if val else "none was given"),
        *choose_settings(train.content, val and val.content, start, num_gpus=num_gpus),
    ]
    if val and _frequencies(train.content) != _frequencies(val.content):
        why = "rare, common and frequent are those of the training set"
        settings.append(Setting("TEST.COUNT_FROM", f"{name}_train", why))
    settings.append(Setting("OUTPUT_DIR", os.path.join("output", name), "of logs and checkpoints"))
    base = configs_folder() / start.base
    text = (
        f"# Written by apa-det prepare-dataset. Train with:\n"
        f"#   apa-det train --config-file {output} --num-gpus {num_gpus}\n"
        f"_BASE_: {json.dumps(str(base))}  # change it on another machine\n"
    )
    with writing(output):
        os.makedirs(output.parent, exist_ok=True)
        output.write_text(text + _yaml(settings), encoding="utf-8")


def _frequencies(dataset: dict) -> list[tuple]:
    return sorted((c["id"], c["image_count"], c["frequency"]) for c in _with_counts(dataset))


def _yaml(settings: list[Setting]) -> str:
    tree: dict = {}
    for setting in settings:
        *nodes, key = setting.key.split(".")
        node = tree
        for name in nodes:
            node = node.setdefault(name, {})
        node[key] = setting
    return "".join(f"{line}\n" for line in _lines(tree, ""))


def _lines(tree: Mapping, indent: str) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        elif isinstance(value.value, list) and value.value and isinstance(value.value[0], list):
            lines.append(f"{indent}{key}:  # {value.reason}")
            lines += [f"{indent}  - {json.dumps(item)}" for item in value.value]
        else:
            lines.append(f"{indent}{key}: {json.dumps(value.value)}  # {value.reason}")
    return lines
