"""The configs that apa_det ships, by name, as ``detectron2.model_zoo`` has those of detectron2.

They are in ``configs/`` of a checkout, and inside the package after ``pip install``.
"""

import builtins
import os
from pathlib import Path

from detectron2.config import CfgNode, LazyConfig, get_cfg
from omegaconf import DictConfig

from .config import add_apa_config
from .errors import MissingFileError, UserError
from .text import printable
from .utils.yaml_files import merge_yaml_config

_PACKAGE = Path(__file__).parent
_SUFFIXES = (".yaml", ".py")
_PUBLISHED = {
    "LVISv1-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_AGLU_GOL_2x",
    "LVISv1-InstanceSegmentation/mask_rcnn_SE_R_101_FPN_AGLU_GOL_2x",
    "V3Det-Detection/faster_rcnn_SE_R_50_FPN_AGLU_2x",
    "V3Det-Detection/cascade_rcnn_SE_R_50_FPN_AGLU_2x",
}
_DETECTORS = "mmdetection_v3.2/README.md of https://github.com/kostas1515/AGLU"


def configs_folder() -> Path:
    """Return the folder of the shipped configs.

    Raises:
        MissingFileError: apa_det was installed without them.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "Base-RCNN-FPN.yaml").is_file():
            return folder
    raise MissingFileError(
        f"The configs of apa_det are neither in {_PACKAGE} nor beside it: install apa_det again."
    )


def list() -> builtins.list[str]:
    """Return the names of the configs of detectors, relative to ``configs/``.

    Bases, plans of comparisons and parts of LazyConfigs are not among them.
    """
    folder = configs_folder()
    names = (path.relative_to(folder) for path in folder.glob("*/*") if path.suffix in _SUFFIXES)
    return sorted(
        name.as_posix()
        for name in names
        if name.parts[0] not in ("Comparison", "common") and not name.name.startswith("Base-")
    )


def get_config_file(name: str) -> str:
    """Return the path of a shipped config.

    Args:
        name: relative to ``configs/``: a name of :func:`list`, or any other file there.

    Raises:
        MissingFileError: there is no such config.
    """
    path = configs_folder() / name
    if not path.is_file():
        raise MissingFileError(
            f"apa_det ships no config {printable(name, 300)}; apa_det.model_zoo.list() returns the "
            "names."
        )
    return str(path)


def get_config(name: str, trained: bool = False) -> CfgNode | DictConfig:
    """Read a shipped config, with all keys of detectron2 and apa_det.

    Args:
        name: as for :func:`get_config_file`. ``.yaml``: a CfgNode is returned; ``.py``: a
            LazyConfig.
        trained: set the weights to the authors' detector, which is converted when it is loaded:
            ``pretrained/<name of the config>.pth`` in the current folder. The authors' files have
            no addresses that a program can download: download it yourself. False: the weights that
            training starts from.

    Raises:
        MissingFileError: there is no such config, or no such checkpoint.
        UserError: the authors of APA published no checkpoint of this detector.
    """
    file = get_config_file(name)
    weights = _trained_weights(name) if trained else None
    if file.endswith(".py"):
        lazy = LazyConfig.load(file)
        if weights:
            lazy.train.init_checkpoint = weights
        return lazy
    cfg = get_cfg()
    add_apa_config(cfg)
    merge_yaml_config(cfg, file)
    if weights:
        cfg.MODEL.WEIGHTS = weights
    return cfg


def _trained_weights(name: str) -> str:
    stem = os.path.splitext(name)[0]
    if stem not in _PUBLISHED:
        raise UserError(
            f"No checkpoint of {name} is published; trained=True works for "
            f"{', '.join(sorted(_PUBLISHED))}."
        )
    file = f"pretrained/{os.path.basename(stem)}.pth"
    if not os.path.isfile(file):
        raise MissingFileError(
            f"There is no {file}: download the weights of this detector to it. {_DETECTORS} has "
            "the address."
        )
    return file
