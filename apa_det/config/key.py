"""A row of the table of config keys, and a section of it."""

from typing import NamedTuple

from .kinds import Kind


class Place(NamedTuple):
    """Where a config key acts.

    Attributes:
        text: what reads the key, in markdown.
        classes: qualified names of classes: while an object of one of them exists, the key acts.
            Empty: :mod:`apa_det.config.ignored_keys` cannot see, or sees otherwise, whether it
            does.
        others: qualified names of classes that ignore the key. If given, a model without objects
            of either kind may read the key in its own code.
    """

    text: str
    classes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


class Key(NamedTuple):
    """A config key.

    Attributes:
        name: with its nodes, e.g. "MODEL.APA.GATE".
        default: changes nothing.
        kind: the allowed values.
        description: what it does, in markdown.
        place: where it acts. None: where its section does.
    """

    name: str
    default: object
    kind: Kind
    description: str
    place: Place | None = None


class Section(NamedTuple):
    """The config keys of one subject.

    Attributes:
        title: the subject.
        place: where its keys act.
        keys: in the order of the config.
        introduction: what applies to all of them, in markdown.
    """

    title: str
    place: Place
    keys: tuple[Key, ...]
    introduction: str = ""
