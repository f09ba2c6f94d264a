"""What a YAML text costs, whatever is in it."""

import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from virtlet.model.bounded_yaml import (
    MOST_CHARACTERS,
    MOST_VALUES,
    compose_yaml,
    load_documents,
    load_yaml,
)
from virtlet.model.plain import UnquotedError

SIZE = 256 << 10
"""Bytes of all annotations of a pod at most."""
MOST_SECONDS = 0.1
MOST_MEMORY = 32 << 20


def full(begun: str, repeated: str, ended: str = "") -> str:
    """A text as large as annotations may be."""
    return begun + repeated * ((SIZE - len(begun) - len(ended)) // len(repeated)) + ended


def most(begun: str, repeated: str, ended: str = "", each: int = 1) -> str:
    """A text with as many values as there may be, of which each repetition has some."""
    times = min(MOST_VALUES // each - 3, SIZE // len(repeated))
    return begun + "".join(repeated.replace("#", str(n)) for n in range(times)) + ended


PAIR = '["\\ud83d\\ude00",'
WORST = {
    "lists": full("[", "[],", "]"),
    "numbers": full("[", "0,", "]"),
    "items": full("", "- 0\n"),
    "one text": "a" * SIZE,
    "one quoted text": full('"', "a", '"'),
    "escapes": full('"', "\\x41", '"'),
    "line ends": full('"', "\n", '"'),
    "block": full("a: |\n", " a\n"),
    "folded": full("a: >\n", " a\n"),
    "underscores": full("1", "_"),
    "digits": full("1", "1"),
    "base 60": full("1", ":1"),
    "base 60 with a fraction": full("1", ":1", ".5"),
    "fraction": full("1.", "1"),
    "hexadecimal": full("0x", "f"),
    "binary": full("0b", "1"),
    "tagged number": full("!!int 1", ":1"),
    "time": full("2001-12-14t21:59:43.", "1"),
    "documents": full("", "--- a\n"),
    "empty documents": full("", "---\n"),
    "anchors": full("[", "&a a,", "]"),
    "aliases": full("[&a a,", "*a,", "]"),
    "comments": full("", "#\n"),
    "long tags": "%TAG !e! tag:" + "x" * (SIZE // 2) + "\n---\n" + "- !e!a b\n" * 14000,
    "nesting": full("", "["),
    "nested mappings": full("", "{a: "),
    "nested blocks": "".join(" " * n + "-\n" for n in range(700)),
    "keys": full("", "? a\n"),
    "dashes": full("", "- - - - -\n"),
    "spaces": full("a: ", " ", "b"),
    "colons": full("a", "::"),
    "directives": full("", "%A b\n", "---\na"),
    "bytes": full("!!binary ", "A"),
    "most numbers": most("[", "0,", "]"),
    "most lists": most("[", "[],", "]"),
    "most mappings": most("[", "{},", "]"),
    "most times": most("[", "2001-12-14t21:59:43.1Z,", "]"),
    "most dates": most("[", "2001-12-14,", "]"),
    "most fractions": most("[", "1.23e+10,", "]"),
    "most base 60": most("[", "1:1:1:1:1:1,", "]"),
    "most keys": most("{", "k#: v,", "}", 2),
    "most numbers as keys": most("{", "#: v,", "}", 2),
    "most bytes": most("[", "!!binary AAAA,", "]"),
    "most pairs": most("!!pairs [", "{a: b},", "]", 3),
    "most ordered": most("!!omap [", "{a: b},", "]", 3),
    "most aliases": most("[&a a,", "*a,", "]"),
    "aliases of aliases": most("[&a [1,2,3,4,5,6,7,8],", "*a,", "]"),
    "same hashes": "{" + "".join(f"{n * (2**61 - 1)}: v," for n in range(3990)) + "}",
    "json lists": full(PAIR, "[],", "1]"),
    "json numbers": full(PAIR, "0,", "1]"),
    "json nesting": full(PAIR, "["),
    "json number": full(PAIR, "1", "]"),
}


def taken(text: str) -> None:
    with contextlib.suppress(UnquotedError):
        load_yaml(text)


@pytest.mark.parametrize("text", WORST.values(), ids=WORST)
def test_the_worst_texts_take_a_bounded_time_and_memory(text: str) -> None:
    """The time is the thread's own on the CPU, and the least of some attempts."""
    assert yaml.__with_libyaml__

    def seconds(attempt: int) -> float:
        other = text + " " * attempt  # what is read again is only copied
        began = time.thread_time()
        taken(other)
        return time.thread_time() - began

    assert min(map(seconds, range(1, 6))) < MOST_SECONDS
    tracemalloc.start()
    try:
        taken(text)
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &b {c: d}\ne: {<<: *b}", "merge key"),
        ("e: {!!merge x: {}}", "merge key"),
        ("[" + "a, " * MOST_VALUES + "]", f"more than {MOST_VALUES} values"),
        ("[&a [1, 2, 3],  " + "*a, " * (MOST_VALUES // 3) + "]", "once its aliases are followed"),
        ("a" * (MOST_CHARACTERS + 1), f"more than {MOST_CHARACTERS} characters"),
        ("a: " + "1" * 101, "a number or time has more than 100 characters"),
        ("a: 18446744073709551616", "a whole number has more than 64 bits"),
    ],
)
def test_what_costs_too_much_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(UnquotedError, match=problem):
        load_yaml(text)


def test_a_number_of_64_bits_may_be_written_in_any_base() -> None:
    assert load_yaml(bin(2**64 - 1)) == load_yaml(hex(2**64 - 1)) == 2**64 - 1


def test_a_long_text_may_begin_like_a_number() -> None:
    text = "1 " * 1000 + "end"
    assert load_yaml(f"a: {text}\n'<<': b") == {"a": text, "<<": "b"}


def test_an_open_bracket_is_told_in_a_line_that_exists() -> None:
    with pytest.raises(UnquotedError, match="at line 1$"):
        load_yaml("a: [")


@pytest.mark.parametrize("read", [load_yaml, load_documents, compose_yaml])
def test_all_ways_of_reading_have_the_bounds(read: Callable[[str], object]) -> None:
    with pytest.raises(UnquotedError, match="values"):
        read("[" + "a, " * MOST_VALUES + "]")


def test_a_document_is_read_once_and_each_caller_has_a_copy() -> None:
    text = "[" + "{a: b}, " * 2000 + "]"
    first, second = load_yaml(text), load_yaml(text)
    first[0]["a"] = "changed"
    assert second[0] == load_yaml(text)[0] == {"a": "b"}


def test_documents_are_read_one_after_the_other() -> None:
    assert load_documents("--- {a: b}\n---\n--- [1]\n") == [{"a": "b"}, None, [1]]


@given(st.text(st.sampled_from("ab01:-&*<!?|>%@`'\"\\{}[],#\n .~_+eux"), max_size=60))
def test_any_text_of_special_characters_is_plain_data_or_refused(text: str) -> None:
    try:
        value = load_yaml(text)
    except UnquotedError:
        return
    json.dumps(value, allow_nan=False)
