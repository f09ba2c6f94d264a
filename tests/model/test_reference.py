import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.errors import InvalidArgument
from virtlet.images.layout import link_name, parse_link
from virtlet.model.reference import LONGEST, Reference, is_id, parse_reference

DIGEST = "sha256:" + "a1" * 32
names = st.from_regex(r"[a-z0-9][a-z0-9._:/+~-]{0,80}", fullmatch=True).filter(
    lambda name: not is_id(name)
)


def test_an_id_is_known_with_and_without_its_algorithm() -> None:
    assert (
        parse_reference("a1" * 32) == parse_reference(DIGEST) == Reference(name="", digest=DIGEST)
    )


def test_a_name_may_carry_a_digest_and_then_its_tag_says_nothing() -> None:
    for tag in ("", ":v1", ":latest"):
        reference = parse_reference(f"virtlet.cloud/example.com:5000/x{tag}@{DIGEST}")
        assert reference == Reference(name="example.com:5000/x", digest=DIGEST)
        assert str(reference) == f"example.com:5000/x@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "name", "short"),
    [
        ("x", "x:latest", "x"),
        ("x:latest", "x:latest", "x"),
        ("virtlet.cloud/x", "x:latest", "x"),
        ("x:v1", "x:v1", "x:v1"),
        ("host:5000/x", "host:5000/x:latest", "host:5000/x"),
        ("host:5000/x:1.2", "host:5000/x:1.2", "host:5000/x:1.2"),
        ("x:latest:latest", "x:latest:latest", "x:latest:latest"),
        ("file:///a/b", "file:///a/b", "file:///a/b"),
        ("http://h/x:latest", "http://h/x:latest", "http://h/x:latest"),
        (
            "https://example.com:443/a:b",
            "https://example.com:443/a:b",
            "https://example.com:443/a:b",
        ),
    ],
)
def test_a_name_without_a_tag_has_the_tag_that_a_kubelet_gives_it(
    text: str, name: str, short: str
) -> None:
    reference = parse_reference(text)
    assert (reference.tagged, str(reference), reference.text) == (name, short, text)
    assert reference.name == text.removeprefix("virtlet.cloud/") or ":" in text


@pytest.mark.parametrize("text", ["x:v1\n", "host:5000/x:a\n", "x:v1\r", "x:v1 "])
def test_a_blank_behind_a_tag_is_refused(text: str) -> None:
    """And is looked at once: a line end let the search for tags go on for ever."""
    with pytest.raises(InvalidArgument, match="no blanks") as caught:
        parse_reference(text)
    with pytest.raises(InvalidArgument, match="no blanks") as longer:
        parse_reference("\0" * 4000 + text)
    assert len(str(longer.value)) < len(str(caught.value)) + 300


@pytest.mark.parametrize("part", ["virtlet.cloud/", ":a", "hunter2@"])
def test_a_text_that_goes_on_for_ever_is_refused_unread(part: str) -> None:
    """Its parts would each be taken off a text of megabytes."""
    with pytest.raises(InvalidArgument, match="longer than 255") as caught:
        parse_reference("x" + part * 400_000)
    assert "hunter2" not in str(caught.value)


def test_what_follows_an_at_is_not_shown() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_reference("https://user:hunter2@example.com/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("end", [" ", "y" * LONGEST])
def test_a_token_in_a_name_that_is_refused_is_not_shown(end: str) -> None:
    with pytest.raises(InvalidArgument, match=r"https://h/x") as caught:
        parse_reference(f"https://h/x?token=hunter2{end}")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "@" + DIGEST,
        "x@",
        "x@sha256:12",
        "x@" + DIGEST.upper(),
        "virtlet.cloud/",
        ":v1",
        "a/:v1",
        ":v1@" + DIGEST,
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
    try:
        reference = parse_reference("@".join(part for part in (name, digest) if part))
    except InvalidArgument:
        return
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
        assert parse_reference(str(reference)) == reference
        assert parse_link(link_name(reference)) == reference
