"""A training config for a dataset, with settings chosen by the data."""

import json
import logging
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from ..model_zoo import configs_folder
from ..text import listed
from ..utils.atomic_files import open_atomic, writing
from .frequency import COMMON_MAX, complete_categories
from .image_names import relative_file_name
from .name_matching import match_names

logger = logging.getLogger(__name__)

_LVIS_IMAGES = 100_000  # for the epochs of its published recipe
_LVIS_EPOCHS, _MOST_EPOCHS = 24, 100
_FEWEST_ITERATIONS = 500
_MANY_CLASSES = 300
_MOST_SCARCE = 0.8  # of the classes, for DropLoss; 0.66 in LVIS
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
        score: class score to keep, with which the weights were trained. "": chosen by the data.
        random: nothing is pretrained.
        own_config: ``base`` is the complete config of the training that wrote the weights: its
            model, loss and image sizes are kept.
    """

    base: str
    settings: tuple[Setting, ...]
    score: Literal["", "gumbel"] = ""
    random: bool = False
    own_config: bool = False


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
        val: test set without other classes, or None.
        start: the starting weights.
        num_gpus: number of GPUs. 0: on the CPU, with small images and few iterations.

    Raises:
        UserError: the training set has no annotations, or the test set has other classes.
    """
    names = class_names(train)
    matches = match_names(class_names(val), names) if val else []
    if None in matches:
        unknown = [c for c, match in zip(class_names(val), matches, strict=True) if match is None]
        raise UserError(
            f"The validation set has the classes {listed(unknown)}, which the training set lacks. "
            "Use the same names in both, or remove them."
        )
    num_images = len({annotation["image_id"] for annotation in train["annotations"]})
    if not num_images:
        raise UserError("The training set has no annotations: there is nothing to learn.")
    masks = has_masks(train)
    device = "cuda" if num_gpus else "cpu"
    return [
        *[Setting("MODEL.DEVICE", device, "see --num-gpus")] * (not num_gpus or start.own_config),
        *start.settings,
        Setting("MODEL.MASK_ON", masks, "the annotations have masks" if masks else "no masks"),
        Setting("MODEL.ROI_HEADS.NUM_CLASSES", len(names), "of the training set"),
        *([] if start.own_config else _input(start, num_gpus)),
        Setting("DATALOADER.MIN_IMAGE_SIDE", 0, "keep small images"),
        *long_tail_settings(train, num_images, start),
        *_schedule(num_images, start, num_gpus, tested=val is not None),
        *_evaluation(val, num_gpus),
    ]


def _input(start: StartingWeights, num_gpus: int) -> list[Setting]:
    if num_gpus:
        return [Setting("INPUT.MIN_SIZE_TRAIN", _SIZES, "a random scale, as for LVIS")]
    size = 256 if start.random else 400
    settings = [
        Setting("INPUT.MIN_SIZE_TRAIN", [size - 32, size, size + 32], "small images, for the CPU"),
        Setting("INPUT.MAX_SIZE_TRAIN", 2 * size, "as above"),
        Setting("INPUT.MIN_SIZE_TEST", size, "as above"),
        Setting("INPUT.MAX_SIZE_TEST", 2 * size, "as above"),
    ]
    if not start.random:
        why = "fewer proposals, for the CPU"
        settings.append(Setting("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 128, why))
    return settings


def long_tail_settings(train: dict, num_images: int, start: StartingWeights) -> list[Setting]:
    """
    Choose sampler, class score and loss. A dataset has a long tail if a class would be repeated.

    Args:
        train: training set, content of an LVIS-format file.
        num_images: number of its images with annotations, at least 1.
        start: the starting weights.
    """
    counted = _with_counts(train)
    most = max((c["image_count"] for c in counted if c["frequency"] in ("r", "c")), default=0)
    share = min(max(most, COMMON_MAX) / num_images, 0.1)
    num_repeated = sum(0 < c["image_count"] < share * num_images for c in counted) if most else 0
    head = "MODEL.ROI_BOX_HEAD"
    if not num_repeated:
        why = f"each class is in at least {share:.2g} of the images, or in none"
        settings = [Setting("DATALOADER.SAMPLER_TRAIN", "TrainingSampler", why)]
        if not (start.score or start.own_config):
            settings.append(Setting(f"{head}.CLASS_SCORE", "softmax", why))
        return settings
    settings = [
        Setting(
            "DATALOADER.SAMPLER_TRAIN",
            "RepeatFactorTrainingSampler",
            f"{num_repeated:,} of {len(counted):,} classes are in few images, which are repeated",
        ),
        Setting(
            "DATALOADER.REPEAT_THRESHOLD",
            _rounded(share, num_images),
            f"few: less than this fraction of the {num_images:,} images",
        ),
    ]
    if start.own_config:
        return settings
    score = start.score or ("apa" if len(counted) < _MANY_CLASSES else "gumbel")
    if score == "apa":
        settings.append(Setting(f"{head}.CLASS_SCORE", "apa", "for long-tailed classes"))
    if score == "gumbel":
        published = "as published for the 1,203 classes of LVIS"
        settings += [
            Setting(f"{head}.CLASS_SCORE", "gumbel", published),
            *_drop_loss(counted, most, num_images),
            Setting(f"{head}.LOGIT_CLAMP", 10.0, published),
            Setting(f"{head}.PREDICTOR_WEIGHT_INIT", 0.001, published),
            Setting(f"{head}.PREDICTOR_BIAS_INIT", -2.0, published),
        ]
    return settings


def _drop_loss(counted: list[dict], most: int, num_images: int) -> list[Setting]:
    key = "MODEL.ROI_BOX_HEAD.USE_DROP_LOSS"
    num_scarce = sum(c["frequency"] in ("r", "c") for c in counted)
    which = f"{num_scarce:,} of {len(counted):,} classes are rare or common"
    if num_scarce > _MOST_SCARCE * len(counted):
        return [Setting(key, False, f"{which}: too few negatives would be left")]
    return [
        Setting(key, True, f"as for LVIS: {which}, and get fewer negatives"),
        Setting(
            "MODEL.ROI_BOX_HEAD.DROP_LOSS_THRESHOLD",
            _rounded((most + 0.5) / num_images, num_images),
            "these classes are in a smaller fraction of the images",
        ),
    ]


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
    devices = max(1, num_gpus)
    if num_gpus:
        per_device = max(1, min(4, 16 // num_gpus))
    else:
        per_device = 8 if start.random else 2
    batch = devices * per_device
    epochs = min(_LVIS_EPOCHS * max(1, (_LVIS_IMAGES / num_images) ** 0.25), _MOST_EPOCHS)
    epochs *= 3 if start.random else 1
    iterations = max(_FEWEST_ITERATIONS, math.ceil(epochs * num_images / batch))
    if not num_gpus:
        iterations = _FEWEST_ITERATIONS
    epochs = iterations * batch / num_images
    why = f"{epochs:{',.0f' if epochs >= 10 else '.2g'}} epochs of {num_images:,} images"
    why += "" if num_gpus else ", about an hour on 2 cores: train longer on a GPU"
    why += ", from random weights" if start.random and num_gpus else ""
    parts = 10 if num_gpus else 2
    period = math.ceil(iterations / parts)
    settings = [
        Setting("SOLVER.REFERENCE_WORLD_SIZE", devices, "more processes scale what follows"),
        Setting(
            "SOLVER.IMS_PER_BATCH",
            batch,
            f"{per_device} images per {'GPU' if num_gpus else 'step'}",
        ),
        Setting("SOLVER.BASE_LR", 0.02 * batch / 16, "0.02 for 16 images, by the linear rule"),
        Setting("SOLVER.MAX_ITER", iterations, why),
        Setting(
            "SOLVER.STEPS",
            [iterations * 2 // 3, iterations * 11 // 12],
            "decrease the learning rate at 2/3 and 11/12, as for LVIS",
        ),
        Setting(
            "SOLVER.WARMUP_ITERS",
            min(1000, math.ceil(iterations / 10)),
            "at most a tenth of the training",
        ),
        Setting("SOLVER.CHECKPOINT_PERIOD", period, f"{parts} checkpoints"),
    ]
    if tested:
        settings.append(Setting("TEST.EVAL_PERIOD", period, f"{parts} evaluations"))
    return settings


def _evaluation(val: dict | None, num_gpus: int) -> list[Setting]:
    if val is None:
        return []
    settings = [
        Setting("TEST.DETECTIONS_PER_IMAGE", 300, "as for LVIS"),
        Setting("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0001, "keep the low scores of rare classes"),
    ]
    subset = 1000 if num_gpus else 100
    if len(val["images"]) > 2 * subset:
        why = f"during training, {subset:,} of {len(val['images']):,} images; all after it"
        settings.append(Setting("TEST.SUBSET", subset, why))
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
    name = _unused_name(output.stem)
    sets = {f"{name}_train": train} | ({f"{name}_val": val} if val else {})
    tests = [f"{name}_val"] if val else []
    folder = os.path.join("output", output.stem)
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
    if val and not _frequencies(val.content).items() <= _frequencies(train.content).items():
        why = "rare, common and frequent are those of the training set"
        settings.append(Setting("TEST.COUNT_FROM", f"{name}_train", why))
    elif start.own_config:
        settings.append(Setting("TEST.COUNT_FROM", "", "not needed"))
    settings.append(Setting("OUTPUT_DIR", folder, "of logs and checkpoints"))
    if val:
        _warn_of_shared_images(train, val)
    base = configs_folder() / start.base
    header = "".join(f"#   {command}\n" for command in commands(output, num_gpus, bool(val)))
    text = (
        f"# Written by apa-det prepare-dataset. To train and to evaluate:\n{header}"
        f"_BASE_: {json.dumps(str(base))}  # change it on another machine\n"
    )
    with writing(output):
        os.makedirs(output.parent, exist_ok=True)
    with open_atomic(output) as file:
        file.write(text + _yaml(settings))


def commands(output: str | os.PathLike, num_gpus: int, tested: bool) -> list[str]:
    """Return the commands that train and evaluate with a config of :func:`write_config`."""
    file = shlex.quote(os.fspath(output))
    weights = shlex.quote(os.path.join("output", Path(output).stem, "model_final.pth"))
    gpus = f" --num-gpus {num_gpus}" if num_gpus > 1 else ""
    train = f"apa-det train --config-file {file}{gpus}"
    return [train] + [f"apa-det eval --config-file {file}{gpus} MODEL.WEIGHTS {weights}"] * tested


def _unused_name(name: str) -> str:
    """Return a name whose datasets are not detectron2's own, such as coco_2017_train."""
    taken = {
        name for name in DatasetCatalog if "rare_max" not in MetadataCatalog.get(name).as_dict()
    }
    while {f"{name}_train", f"{name}_val"} & taken:
        name = f"my_{name}"
    return name


def _warn_of_shared_images(train: RegisteredFile, val: RegisteredFile) -> None:
    names, others = ({*_image_files(file)} for file in (train, val))
    if names & others:
        logger.warning(
            "%d of the %d validation images are also training images: the AP will be too high.",
            *(len(names & others), len(others)),
        )


def _image_files(file: RegisteredFile) -> Iterator[str]:
    for image in file.content["images"]:
        name = relative_file_name(image, allow_outside_root=True)
        yield os.path.abspath(os.path.join(file.image_root, name))


def _frequencies(dataset: dict) -> dict[str, tuple]:
    return {c["name"]: (c["image_count"], c["frequency"]) for c in _with_counts(dataset)}


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
