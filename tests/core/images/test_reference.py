import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.core.images.reference import (
    LONGEST,
    Reference,
    is_id,
    link_name,
    parse_link,
    parse_reference,
)
from virtlet.errors import InvalidArgument

DIGEST = "sha256:" + "a1" * 32
names = st.from_regex(r"[a-z0-9][a-z0-9._:/+~-]{0,80}", fullmatch=True).filter(
    lambda name: not is_id(name)
)


def test_an_id_is_known_with_and_without_its_algorithm() -> None:
    assert parse_reference("a1" * 32) == parse_reference(DIGEST) == Reference("", DIGEST)


def test_a_name_may_carry_a_digest() -> None:
    assert parse_reference(f"example.com/x@{DIGEST}") == Reference("example.com/x", DIGEST)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@" + DIGEST,
        "x@",
        "x@sha256:12",
        "x@" + DIGEST.upper(),
        f"x@{DIGEST}@{DIGEST}",
        ".hidden",
        "..",
        "a b",
        "a%b",
        "a\nb",
        "a\0b",
        "x" * (LONGEST + 1),
        "é" * 128,
    ],
)
def test_what_could_not_be_a_link_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_reference(text)


@given(names, st.sampled_from(["", DIGEST]))
def test_a_link_leads_back_to_its_reference(name: str, digest: str) -> None:
    reference = Reference(name, digest)
    link = link_name(reference)
    assert "/" not in link
    assert link not in (".", "..")
    assert len(link.encode()) <= LONGEST
    assert parse_link(link) == reference


@given(st.text())
def test_any_text_is_a_reference_or_a_clear_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidArgument:
        return
    if reference.name:
        assert str(reference) == text
        assert parse_link(link_name(reference)) == reference
