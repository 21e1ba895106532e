"""A row of the table of config keys, and a section of it."""

from typing import NamedTuple

from .kinds import Kind


class Key(NamedTuple):
    """A config key.

    Attributes:
        name: with its nodes, e.g. "MODEL.APA.GATE".
        default: changes nothing.
        kind: the allowed values.
        description: what it does, in markdown.
    """

    name: str
    default: object
    kind: Kind
    description: str


class Section(NamedTuple):
    """The config keys of one subject.

    Attributes:
        title: the subject.
        keys: in the order of the config.
        introduction: what applies to all of them, in markdown.
    """

    title: str
    keys: tuple[Key, ...]
    introduction: str = ""
