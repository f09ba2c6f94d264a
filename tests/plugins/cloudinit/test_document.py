import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from virtlet.plugins.cloudinit.datasources import dump

# YAML's readers allow 1024 characters for a key.
KEYS = st.text(max_size=30)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(KEYS, children),
    max_leaves=20,
)


@given(VALUES)
def test_json_and_yaml_readers_see_the_same_document(value: object) -> None:
    text = dump(value)
    assert json.loads(text) == value
    assert yaml.safe_load(text) == value


@pytest.mark.parametrize(
    "value",
    [
        *("\x7f", "\x85", "a\u2028b", "\ufeff", "\uffff", "😀", "\0", "\r\n", "\t"),
        *("52:54:00:12:34:56", "yes", "0755", "~", "- a", "# a", "{", "'", '"', "\\"),
        *(1e22, 1e-7, -0.0),
    ],
)
def test_what_the_two_formats_read_differently_is_written_safely(value: object) -> None:
    text = dump({"key": [value]})
    assert yaml.safe_load(text) == json.loads(text) == {"key": [value]}


def test_a_document_is_one_line() -> None:
    assert dump({"a": "x\ny", "b": [1, None, True]}) == '{"a": "x\\ny", "b": [1, null, true]}'
