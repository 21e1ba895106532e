"""Flags that several commands share."""

import argparse

CONFIG_HELP = "a yaml config or a LazyConfig (.py)"
OPTS_HELP = (
    "last on the line: overrides of the config, KEY VALUE pairs for a yaml config, key=value for a "
    "LazyConfig"
)


def command_parser(prog: str | None, doc: str, **kwargs) -> argparse.ArgumentParser:
    """Return a parser that shows the docstring of the command's module as it is."""
    return argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
    )


def add_config_file(parser: argparse._ActionsContainer, note: str = "", **kwargs) -> None:
    """Add ``--config-file``, with a note on what this command does with it."""
    parser.add_argument("--config-file", metavar="FILE", help=CONFIG_HELP + note, **kwargs)


def add_import(parser: argparse._ActionsContainer) -> None:
    """Add ``--import``, which every command has."""
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="imports",
        metavar="MODULE",
        help="import a module of yours first, e.g. one that registers a loss: a dotted name or a "
        ".py file; may be repeated",
    )


def add_overrides(parser: argparse.ArgumentParser, *, trailing: bool = False) -> None:
    """Add ``--import`` and ``--opts``, the overrides of the config.

    Args:
        parser: of a command with ``--config-file``.
        trailing: also take overrides without ``--opts``, as detectron2's train_net.py does. Only
            for commands without positional arguments and flags of several values, which would
            take them for theirs.
    """
    add_import(parser)
    remainder = {"action": _Overrides, "nargs": argparse.REMAINDER, "default": []}
    parser.add_argument("--opts", help=OPTS_HELP, **remainder)
    if trailing:
        parser.add_argument("opts", help="overrides of the config, as with --opts", **remainder)


class _Overrides(argparse.Action):
    """Append: the flag and the positional argument, which may be empty, share a list."""

    def __call__(self, parser, namespace, values, option_string=None):
        values = [value for value in values if value not in ("--", "--opts")]
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values])


def add_num_images(parser: argparse.ArgumentParser, default: int, of: str) -> None:
    """Add ``--num-images``, the size of a subset of a dataset."""
    parser.add_argument(
        "--num-images",
        type=positive_int,
        default=default,
        metavar="N",
        help=f"images of the {of} set, chosen to cover rare categories (default {default})",
    )


def add_ground_truth(parser: argparse.ArgumentParser, **kwargs) -> None:
    """Add ``--gt``."""
    text = "ground truth of the result files (LVIS or COCO format)"
    parser.add_argument("--gt", metavar="JSON", help=text, **kwargs)


def add_results(parser: argparse.ArgumentParser, **kwargs) -> None:
    """Add ``--results``."""
    kwargs = {"nargs": "+", "metavar": "FILE", **kwargs}
    parser.add_argument("--results", help="result files", **kwargs)


def add_count_from(parser: argparse.ArgumentParser) -> None:
    """Add ``--count-from``."""
    parser.add_argument(
        "--count-from",
        metavar="JSON",
        help="take the image counts of the categories from this training set (LVIS or COCO format)",
    )


def add_max_dets(parser: argparse.ArgumentParser) -> None:
    """Add ``--max-dets``."""
    parser.add_argument(
        "--max-dets",
        type=int,
        default=300,
        metavar="N",
        help="detections per image, those of the highest scores (default 300; -1: all)",
    )


def positive_int(text: str) -> int:
    """Return an integer >= 1, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {text}")
    return int(text)


def whole_number(text: str) -> int:
    """Return an integer >= 0, for argparse."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"must be >= 0, got {text}")
    return int(text)


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of ``0.5,1``, for argparse."""
    return tuple(map(float, text.split(",")))
