import datetime
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.model.bounded_yaml import load_yaml
from virtlet.model.plain import MAX_DEPTH, UnquotedError, plain

SECRET = "hunter2hunter2"
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_plain_data_stays_as_it_is(value: object) -> None:
    assert plain(value) == value


@given(JSON_VALUES)
def test_a_json_document_is_read_as_yaml_too(value: object) -> None:
    """Numbers are not compared: YAML 1.1 reads JSON's 1e+22 as a text."""
    assert type(load_yaml(json.dumps({"value": value}))) is dict


@given(st.text(max_size=50))
def test_texts_that_json_escapes_are_read_whole(text: str) -> None:
    assert load_yaml(json.dumps([text])) == [text]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("day: 2026-01-02", {"day": "2026-01-02"}),
        ("at: 2026-01-02 03:04:05", {"at": "2026-01-02T03:04:05"}),
        ("1: a", {"1": "a"}),
        ("true: a", {"true": "a"}),
        ("~: a", {"null": "a"}),
        ("1.5: a", {"1.5": "a"}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("", None),
    ],
)
def test_yaml_becomes_what_json_can_hold(text: str, value: object) -> None:
    assert load_yaml(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: b: c",
        "!!python/object/apply:os.system [x]",
        "!!int ''",
        "!!bool maybe",
        "!!timestamp x",
        "!!binary a",
        "2026-13-45",
        "? [a]\n: b",
        "{1: a, '1': b}",
        "a: .inf",
        "a: .nan",
        "a: 0x" + "f" * 200,
        "a: !!set {b}",
        "a: !!binary aGVsbG8=",
        '"\\ud800"',
        "\x00",
        "&a [*a]",
        "--- a\n--- b",
        "[" * 5000,
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    ],
)
def test_what_json_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(UnquotedError):
        load_yaml(text)


def test_a_yaml_bomb_is_refused_at_once() -> None:
    """Nine levels of nine aliases each stand for 387 million texts."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for n in range(1, 9):
        lines.append(f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]")
    start = time.monotonic()
    with pytest.raises(UnquotedError, match="aliases"):
        load_yaml("\n".join(lines))
    assert time.monotonic() - start < 5


def test_an_aliased_text_counts_every_time() -> None:
    text = "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 100) + "]"
    with pytest.raises(UnquotedError, match="too large"):
        load_yaml(text)


@pytest.mark.parametrize(
    "text",
    [
        f"password: {SECRET}\n bad: [",
        f"!!int {SECRET}",
        f"!!timestamp {SECRET}",
        f"!{SECRET} x",
        f"*{SECRET}",
        f"%{SECRET}",
        f"{{{SECRET}: 1, {SECRET}: 2, ? [x]}}",
    ],
)
def test_an_error_never_quotes_the_document(text: str) -> None:
    with pytest.raises(UnquotedError) as caught:
        load_yaml(text)
    assert SECRET not in str(caught.value)
    assert "hunter" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_plain_data_or_refused(text: str) -> None:
    try:
        value = load_yaml(text)
    except UnquotedError:
        return
    json.dumps(value, allow_nan=False).encode()


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", {"a": {("x",): 1}}])
def test_values_of_plugins_that_json_lacks_are_refused(value: object) -> None:
    with pytest.raises(UnquotedError):
        plain(value)


def test_dates_become_their_text() -> None:
    assert plain([datetime.date(2026, 1, 2)]) == ["2026-01-02"]
