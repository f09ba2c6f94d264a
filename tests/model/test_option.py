import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.model import make_config, make_pod
from virtlet.errors import InvalidArgument
from virtlet.model.option import (
    BOOLEAN,
    BYTES,
    LINES,
    MAPPING,
    PATH,
    TEXT,
    TRUE_ONLY,
    WORDS,
    Annotation,
    Kind,
    Option,
    choice,
    integer,
)

SECRET = "hunter2hunter2"
COUNT = Annotation(name="Count", kind=integer(1, 255), default=1, help="How many")
TOKEN = Annotation(
    name="Token", kind=integer(1, 255), default=1, help="A number nobody may see", secret=True
)
DOCUMENT = Annotation(
    name="Document", kind=MAPPING, default={}, help="A document nobody may see", secret=True
)


def test_an_annotation_that_is_not_there_has_its_default() -> None:
    assert COUNT.of(make_pod()) == 1


def test_an_annotation_is_read_by_its_kind() -> None:
    assert COUNT.of(make_pod({"Count": "7"})) == 7


def test_a_wrong_annotation_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"annotation Count: 'many' is no whole number"):
        COUNT.of(make_pod({"Count": "many"}))


def test_a_secret_annotation_is_refused_without_its_value() -> None:
    with pytest.raises(InvalidArgument) as caught:
        TOKEN.of(make_pod({"Token": SECRET}))
    assert str(caught.value) == "annotation Token: is no valid integer 1..255"


def test_a_secret_document_is_refused_with_the_place_of_the_mistake() -> None:
    with pytest.raises(InvalidArgument) as caught:
        DOCUMENT.of(make_pod({"Document": f"a: {SECRET}\nb: [\n"}))
    assert str(caught.value) == "annotation Document: no valid YAML at line 3, column 1"


@pytest.mark.parametrize("text", ["[1]", "word", "1", "- a"])
def test_a_mapping_is_nothing_else(text: str) -> None:
    with pytest.raises(ValueError, match="must be a mapping, not an? "):
        MAPPING.parse(text)


def test_an_empty_document_is_an_empty_mapping() -> None:
    assert MAPPING.parse("# nothing\n") == {}


@pytest.mark.parametrize("text", ["True", "yes", "1", " true", "false", ""])
def test_only_true_is_true_where_virtlet_said_so(text: str) -> None:
    assert TRUE_ONLY.parse("true") is True
    assert TRUE_ONLY.parse(text) is False


@pytest.mark.parametrize(("text", "value"), [("Yes", True), ("off", False), ("0", False)])
def test_booleans_of_the_manager_have_several_words(text: str, value: bool) -> None:
    assert BOOLEAN.parse(text) is value


def test_a_word_that_is_no_boolean_is_refused() -> None:
    with pytest.raises(ValueError, match="neither true nor false"):
        BOOLEAN.parse("maybe")


@pytest.mark.parametrize("text", ["0", "256", "1.0", "", "0x1", "1" * 5000])
def test_an_integer_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        integer(1, 255).parse(text)


def test_a_choice_names_the_words_it_takes() -> None:
    with pytest.raises(ValueError, match="'ide' is none of 'scsi', 'virtio'"):
        choice("scsi", "virtio").parse("ide")


def test_lists_drop_what_is_empty() -> None:
    assert WORDS.parse("a,,b") == ("a", "b")
    assert LINES.parse(" a \n\n b") == ("a", "b")


def test_settings_are_read_with_their_declaration() -> None:
    root = Option(field="root", flag="--root", env="ROOT", kind=PATH, default="/var", help="Where")
    assert make_config([root], root="/srv")[root] == Path("/srv")
    with pytest.raises(KeyError):
        make_config()[root]


KINDS: list[Kind[object]] = [
    integer(1, 255),  # type: ignore[list-item]
    choice("a", "b"),  # type: ignore[list-item]
    MAPPING,  # type: ignore[list-item]
    BYTES,  # type: ignore[list-item]
    BOOLEAN,  # type: ignore[list-item]
    TEXT,  # type: ignore[list-item]
    LINES,  # type: ignore[list-item]
    WORDS,  # type: ignore[list-item]
]


@given(st.sampled_from(KINDS), st.text(max_size=60))
def test_any_text_is_a_value_or_an_invalid_argument(kind: Kind[object], text: str) -> None:
    annotation: Annotation[object] = Annotation(name="Any", kind=kind, default=None, help="Any")
    with contextlib.suppress(InvalidArgument):
        annotation.of(make_pod({"Any": text}))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_message_is_short_however_long_the_text_is(kind: Kind[object]) -> None:
    annotation: Annotation[object] = Annotation(name="Any", kind=kind, default=None, help="Any")
    if kind in (TEXT, LINES, WORDS):
        assert annotation.of(make_pod({"Any": "x" * 100_000}))
        return
    with pytest.raises(InvalidArgument, match="^annotation Any: ") as caught:
        annotation.of(make_pod({"Any": "x" * 100_000}))
    assert len(str(caught.value)) < 300
