"""Read yaml files as data: nothing in a file is run or downloaded, and its size is limited."""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import detectron2
import yaml
from detectron2.config import CfgNode
from detectron2.config.compat import downgrade_config, guess_version, upgrade_config

from ..errors import MissingFileError, UserError
from ..text import printable

logger = logging.getLogger(__name__)

_BASE = "_BASE_"
_MAX_BYTES = 500_000
_MAX_NODES = 60_000  # values and keys; those of an alias count each time
_MAX_LEVELS = 50
_MAX_FILES = 50  # that a config inherits from
_MAX_NUMBER = 100  # characters
_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float", f"{_TAG}timestamp")
_TUPLE = f"{_TAG}python/tuple"
_CONTROL = re.compile(r"[^\t\n\r\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\U0010ffff]")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with the tag of tuples, which detectron2 writes, and a limit."""

    num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        self.num_nodes += 1
        if self.num_nodes > _MAX_NODES:
            raise ValueError(f"it has more than {_MAX_NODES:,} values")
        return super().compose_node(parent, index)

    def construct_tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))


_Loader.add_constructor(_TUPLE, _Loader.construct_tuple)


def read_yaml(path: str | os.PathLike) -> dict:
    """Read a yaml file of plain data: mappings, lists, tuples, strings, numbers, dates and None.

    Raises:
        MissingFileError: the file does not exist.
        UserError: it is not valid yaml, is not a mapping, has a tag that runs code or control
            characters, or is too large.
    """
    path = os.fspath(path)
    return _construct(path, _compose(path), allow_lazy=True)


def read_yaml_config(path: str | os.PathLike) -> dict:
    """Read a yaml config of detectron2, merged into those that it inherits from (``_BASE_``).

    ``_BASE_`` is a file or a list of files, relative to the folder of the config. Tags that run
    code are allowed only in detectron2's own configs. A LazyConfig is code, see
    :func:`has_lazy_calls`, so it is rejected.

    Raises:
        MissingFileError: a file does not exist.
        UserError: see :func:`read_yaml`; or ``_BASE_`` is not a local file, or inherits from the
            config itself.
    """
    return _read_config(os.fspath(path), (), [])


def merge_yaml_config(cfg: CfgNode, path: str | os.PathLike) -> None:
    """Merge a yaml config into a config of detectron2's latest version, in place.

    This is ``CfgNode.merge_from_file``, which converts configs of old versions too, without running
    code from the file.

    Raises:
        UserError: see :func:`read_yaml_config`; or a key or value does not fit ``cfg``.
    """
    path = os.fspath(path)
    content = read_yaml_config(path)
    with _merge_errors(path):
        loaded = CfgNode(content)
        version = loaded.get("VERSION", None)
        if version is None:
            version = guess_version(loaded, path)
        if type(version) is not int or not 0 <= version <= cfg.VERSION:
            raise ValueError(f"VERSION must be from 0 to {cfg.VERSION}, got {version!r}")
        if version == cfg.VERSION:
            cfg.merge_from_other_cfg(loaded)
            return
        logger.warning("%s is a config of version %d: converting it.", path, version)
        old = downgrade_config(cfg, to_version=version)
        old.merge_from_other_cfg(loaded)
        upgraded = upgrade_config(old)
        cfg.clear()
        cfg.update(upgraded)


def merge_overrides(cfg: CfgNode, opts: Sequence, source: str) -> None:
    """Merge overrides into a config, in place: ``CfgNode.merge_from_list``.

    Args:
        cfg: the config.
        opts: ``[KEY, VALUE, ...]``; a value that is a string may be a Python literal.
        source: where they come from, for errors.

    Raises:
        UserError: a key or value does not fit ``cfg``.
    """
    with _merge_errors(source):
        cfg.merge_from_list(list(opts))


@contextmanager
def _merge_errors(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # yacs raises errors of many types for invalid values
        message = error.args[0] if isinstance(error, KeyError) else error
        raise UserError(f"{source}: {_one_line(message)}") from error


def has_lazy_calls(path: str | os.PathLike) -> bool:
    """Return whether a yaml file is a LazyConfig: whether it has a key ``_target_``.

    Such a file is code, like a LazyConfig in Python: detectron2 reads it by ``yaml.unsafe_load``,
    and calls what ``_target_`` names.

    Raises:
        MissingFileError, UserError: see :func:`read_yaml`.
    """
    path = os.fspath(path)
    return _check(path, _compose(path), allow_tags=True)


def _read_config(path: str, outer: tuple[str, ...], files: list[str]) -> dict:
    """Args: outer: the files that inherit from this one; files: all files read so far."""
    real = os.path.realpath(path)
    if real in outer:
        raise UserError(f"{path} inherits from itself: change {_BASE}.")
    files.append(real)
    if len(files) > _MAX_FILES:
        raise UserError(f"{path}: a config must inherit from at most {_MAX_FILES} files.")
    content = _construct(path, _compose(path), allow_lazy=False)
    if _BASE not in content:
        return content
    bases = content.pop(_BASE)
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {_BASE} must be a file or a list of files.")
    result: dict = {}
    for base in bases:
        if "://" in base or "://" in path:
            raise UserError(
                f"{path}: {_BASE} must be a local file, got {printable(base, 300)}. Download it, "
                "and name its path."
            )
        file = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if not os.path.isfile(file):
            raise MissingFileError(
                f"{path}: {_BASE} is {printable(file, 300)}, which does not exist."
            )
        _merge(_read_config(file, (*outer, real), files), result, path)
    _merge(content, result, path)
    return result


def _merge(new: dict, result: dict, path: str) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and key in result:
            if not isinstance(result[key], dict):
                raise UserError(
                    f"{path}: {printable(key)} has keys, but in {_BASE} it has a value: use one "
                    "form."
                )
            _merge(value, result[key], path)
        else:
            result[key] = value


def _compose(path: str) -> yaml.Node | None:
    if not os.path.isfile(path):
        raise MissingFileError(f"There is no file {printable(path, 300)}. Check the path.")
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES:,} bytes")
        return _Loader(data).get_single_node()
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        message = str(error).replace('in "<byte string>",', "at")
        raise UserError(f"{path}: invalid yaml: {_one_line(message)}.") from error


def _check(path: str, root: yaml.Node | None, *, allow_tags: bool) -> bool:
    """Return whether a key is ``_target_``; raise a UserError for unbounded data and for tags."""
    if not isinstance(root, yaml.MappingNode):
        found = "an empty file" if root is None else f"a {root.id}"
        raise UserError(f"{path} must be a yaml file of keys and values, got {found}.")
    known: dict[int, tuple[int, int]] = {}
    lazy = False

    def measure(node: yaml.Node, level: int) -> tuple[int, int]:
        """Return the number of nodes and of levels below."""
        nonlocal lazy
        size, height = known.get(id(node), (0, 0))
        if level + height > _MAX_LEVELS:
            raise UserError(f"{path} is nested too deeply, or contains itself.")
        if size:
            return size, height
        problem = _problem(node, allow_tags)
        if problem:
            raise UserError(f"{path}, line {node.start_mark.line + 1}: {problem}.")
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            lazy = lazy or any(key.value == "_target_" for key, _ in children)
            children = [child for pair in children for child in pair]
        size = 1
        for child in children:
            child_size, child_height = measure(child, level + 1)
            size += child_size
            height = max(height, child_height + 1)
        if size > _MAX_NODES:
            raise UserError(f"{path} has more than {_MAX_NODES:,} values.")
        known[id(node)] = size, height
        return size, height

    measure(root, 0)
    return lazy


def _problem(node: yaml.Node, allow_tags: bool) -> str | None:
    if not allow_tags and node.tag.startswith(f"{_TAG}python/") and node.tag != _TUPLE:
        tag = printable(node.tag.removeprefix(_TAG))
        return f"the tag !!{tag} runs code, which a yaml file must not do; write the value itself"
    if isinstance(node, yaml.ScalarNode):
        if _CONTROL.search(node.value):
            return "a control character is not allowed"
        if node.tag in _NUMBERS and len(node.value) > _MAX_NUMBER:
            return f"a number must have at most {_MAX_NUMBER} characters"
    return None


def _construct(path: str, root: yaml.Node | None, *, allow_lazy: bool) -> dict:
    trusted = _is_detectron2s(path)
    if _check(path, root, allow_tags=trusted) and not allow_lazy:
        raise UserError(
            f"{path} has a key _target_, so it is a LazyConfig, which is code: it can be used only "
            f"as --config-file itself, not through {_BASE}."
        )
    if trusted:
        with open(path, encoding="utf-8") as file:
            return yaml.unsafe_load(file)
    try:
        return _Loader("").construct_document(root)
    except Exception as error:  # a scalar that does not fit its tag can raise anything
        raise UserError(f"{path}: invalid yaml: {_one_line(error)}.") from error


def _is_detectron2s(path: str) -> bool:
    """Return whether a file belongs to the installed detectron2: its tags may run code."""
    package = os.path.dirname(detectron2.__file__)
    folders = (package, os.path.join(package, "model_zoo", "configs"))  # the latter may be a link
    real = os.path.realpath(path)
    return any(real.startswith(os.path.realpath(folder) + os.sep) for folder in folders)


def _one_line(message: object) -> str:
    text = " ".join(str(message).split()) or type(message).__name__
    if len(text) > 500:  # the value in the middle is long
        text = f"{text[:240]} ... {text[-240:]}"
    return printable(text, 600)
