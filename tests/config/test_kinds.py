"""Kinds accept exactly the values that their text says."""

import math
import re

import pytest

from apa_det.config import kinds
from apa_det.config.kinds import integer, list_of, name_in, number, one_of, range_pair

GATES = name_in("apa_det.layers:GATE_REGISTRY", "none")
KINDS = name_in("apa_det.injection.activation_kinds:KINDS")


@pytest.mark.parametrize(
    "kind, good, bad",
    [
        (number(), [0, -1.5, 10**300], [math.nan, math.inf, -math.inf, True, "1", None, 10**400]),
        (number("> 0"), [1e-300, 1], [0, 0.0, -1]),
        (number(">= 0"), [0, 0.0], [-1e-300]),
        (number("<= 1"), [1, -5], [1.1]),
        (number("in [0, 1)"), [0, 0.999], [1, -0.1]),
        (number("in (0, 1]"), [1, 0.1], [0, 1.1]),
        (integer(), [0, -5], [1.0, True, "1", None, 2**63, [1]]),
        (integer(">= 1"), [1, 10**9], [0, -1]),
        (kinds.boolean, [True, False], [0, 1, None, "True"]),
        (kinds.text, ["", "a"], [None, 1, b"a", ["a"]]),
        (one_of("a", "b"), ["a", "b"], ["c", "", None, ["a"]]),
        (one_of(1, None), [1, None], [True, 1.0, "None", 0]),
        (list_of(integer()), [[], (1, 2), [3]], ["", "12", None, 1, {}, [1.0], [[1]]]),
        (list_of(integer(), 0, 2), [[], [1, 2]], [[1], [1, 2, 3]]),
        (kinds.some(integer()), [[1]], [[], None]),
        (kinds.ascending(number()), [[], [1, 1, 2.5]], [[2, 1], ["a", "b"], 1]),
        (kinds.ascending(number(), strictly=True), [[], [1], [1, 2.5]], [[1, 1], [2, 1]]),
        (range_pair(), [[0, 0], (-1.0, 2)], [[1, 0], [0], [0, 1, 2], ["a", "b"], 0.5]),
        (range_pair("> 0"), [[0.1, 1]], [[0, 1]]),
        (kinds.optional(number()), [None, 1.5], ["None", []]),
        (kinds.either(one_of(-1), integer(">= 1")), [-1, 1], [0, -2]),
        (GATES, ["none", "se", "cbam"], ["SE", "", None, 5, ["se"], {}]),
    ],
)
def test_values(kind, good, bad):
    assert [value for value in good if not kind.accepts(value) or kind.fault(value)] == []
    assert [value for value in bad if kind.accepts(value) or not kind.fault(value)] == []


@pytest.mark.parametrize(
    "kind, value, sentence",
    [
        (number("> 0"), -1, " must be a number > 0, got -1"),
        (number(), math.nan, " must be a finite number, got nan"),
        (number("in [0, 1)"), 1.0, " must be a number in [0, 1); got 1.0"),
        (integer(">= 1"), 1 << 5000, " must be an integer >= 1, got an integer of 5,001 bits"),
        (one_of("", "a"), "b", " must be \"\" or a, got 'b'"),
        (one_of("a", "b", "c"), None, " must be one of a, b, c; got None"),
        (list_of(one_of(0, 1)), [1, 2], "[1] must be 0 or 1, got 2"),
        (list_of(list_of(kinds.text, 3)), [["a"]], "[0] must be a list of length 3, got ['a']"),
        (kinds.optional(integer()), "x", " must be None or an integer, got 'x'"),
        (kinds.either(kinds.text, list_of(kinds.text)), [5], "[0] must be a string, got 5"),
        (range_pair(), [1, 0], " must be [low, high] with low <= high; got [1, 0]"),
        (KINDS, "Relu", " must be one of celu, .*silu; got 'Relu'. Did you mean relu\\?"),
        (KINDS, "x", " must be one of celu, .*silu; got 'x'"),
        (
            GATES,
            "x",
            " must be one of none, .*spatial; got 'x'. Fix the name, or give --import with .*",
        ),
        (GATES, "x" * 5000, " must be .* got 'x{40}'.*"),
    ],
)
def test_sentences(kind, value, sentence):
    fault = kind.fault(value)
    assert fault == sentence or re.fullmatch(sentence, fault), fault
