import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtlet.errors import InvalidArgument
from virtlet.model.reference import Reference, is_id, parse_reference
from virtlet.plugins.image_names.plugin import check_name

DIGEST = "sha256:" + "a1" * 32

# What the kubelet lets through: the grammar of image references of the distribution project.
components = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,3}", fullmatch=True)
hosts = st.from_regex(r"[a-z0-9]+(\.[a-z0-9]+){0,3}(:[0-9]{1,5})?", fullmatch=True)
tags = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
paths = st.lists(components, min_size=1, max_size=4).map("/".join)
names = st.one_of(paths, st.tuples(hosts, paths).map("/".join)).filter(
    lambda name: len(name) < 150 and not is_id(name)
)


def checked(text: str) -> Reference:
    """A name as a pod has it, taken apart and checked."""
    reference = parse_reference(text)
    check_name(reference.name)
    return reference


def parts(text: str) -> tuple[str, str]:
    """Its name and digest."""
    return checked(text).name, checked(text).digest


@given(
    names,
    st.one_of(st.just(""), tags.map(lambda tag: f":{tag}")),
    st.sampled_from(["", f"@{DIGEST}"]),
    st.sampled_from(["", "virtlet.cloud/"]),
)
def test_prefix_and_tag_go_and_name_and_digest_stay(
    name: str, tag: str, digest: str, prefix: str
) -> None:
    if prefix == "" and name.startswith("virtlet.cloud/"):
        return
    assert parts(f"{prefix}{name}{tag}{digest}") == (name, digest[1:])


@given(names)
def test_a_plain_name_means_itself(name: str) -> None:
    once = checked(name)
    assert checked(once.name) == once


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("virtlet.cloud/cirros:latest", "cirros"),
        ("localhost:8080/cirros.qcow2", "localhost:8080/cirros.qcow2"),
        ("localhost:8080/cirros.qcow2:v1", "localhost:8080/cirros.qcow2"),
        ("cirros:8080", "cirros"),
        ("file:///srv/a:b.qcow2", "file:///srv/a:b.qcow2"),
        ("virtlet.cloud/http://localhost:8080/a", "http://localhost:8080/a"),
        ("https://example.com/a.qcow2", "https://example.com/a.qcow2"),
        ("docker://example.com/a", "docker://example.com/a"),
    ],
)
def test_examples(text: str, name: str) -> None:
    assert parts(text) == (name, "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "virtlet.cloud/",
        ":latest",
        "a//b",
        "/a",
        "a/",
        "a/../b",
        "./a",
        "file:///srv/../etc/shadow",
        "file://",
        "http://",
        "https:///a",
        "a b",
        "a\nb",
        "a%20b",
        "a\\b",
        "ä",
        "a@sha256:12",
        "@" + DIGEST,
        "https://example.com/a?token=x",
        "https://example.com/a#x",
    ],
)
def test_what_is_not_a_name_is_a_clear_error(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"image name|address"):
        checked(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@example.com/a",
        f"https://user:hunter2@example.com/a@{DIGEST}",
        "user:hunter2@example.com",
        "https://example.com/a?token=hunter2",
    ],
)
def test_credentials_in_a_name_are_refused_and_not_shown(text: str) -> None:
    with pytest.raises(InvalidArgument, match="image translation file") as caught:
        checked(text)
    assert "hunter2" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_name_or_a_clear_error(text: str) -> None:
    try:
        image = checked(text)
    except InvalidArgument:
        return
    assert image.name
    assert not any(character in image.name for character in "%@?# \n\0")
    assert ".." not in image.name.split("/")
