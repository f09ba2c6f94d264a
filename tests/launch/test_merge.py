"""Parts of several plugins become one launch, or an error that names who clashes."""

import os
from pathlib import Path

import pytest

from virtlet.errors import PluginError
from virtlet.launch.merge import MOST_FDS, merge_launch
from virtlet.model.launch import ENV_TOKEN, LaunchFd, LaunchPart, Visible


def _fd(name: str) -> LaunchFd:
    return LaunchFd(name=name, fd=os.open("/dev/null", os.O_RDONLY))


def _is_open(item: LaunchFd) -> bool:
    try:
        os.fstat(item.fd)
    except OSError:
        return False
    return True


def test_parts_add_up_in_order() -> None:
    """Arguments and cgroups follow the order of the plugins."""
    group = Path("/sys/fs/cgroup/a")
    launch = merge_launch(
        [
            ("one", LaunchPart(arguments=("-a",), environment={"A": "1"}, cgroups=(group,))),
            ("two", LaunchPart(arguments=("-b",), environment={"B": "2"}, cgroups=(group,))),
            ("three", LaunchPart(emulator=Path("/bin/qemu"))),
        ]
    )
    assert launch.arguments == ("-a", "-b")
    assert launch.environment == {"A": "1", "B": "2"}
    assert launch.cgroups == (group,)
    assert launch.emulator == Path("/bin/qemu")


def test_saying_the_same_twice_is_no_clash() -> None:
    """For variables and for the emulator."""
    part = LaunchPart(environment={"A": "1"}, emulator=Path("/bin/qemu"))
    launch = merge_launch([("one", part), ("two", part)])
    assert launch.environment == {"A": "1"}


def test_the_last_that_says_an_oom_score_counts() -> None:
    """0 is a score; None says nothing."""
    parts = [("one", LaunchPart(oom_score_adj=500)), ("two", LaunchPart(oom_score_adj=0))]
    assert merge_launch([*parts, ("three", LaunchPart())]).oom_score_adj == 0
    assert merge_launch([("one", LaunchPart())]).oom_score_adj is None


def test_an_argument_may_use_another_plugins_descriptor() -> None:
    """Plugins may work together."""
    launch = merge_launch(
        [("one", LaunchPart(fds=(_fd("tap"),))), ("two", LaunchPart(arguments=("fd={fd:tap}",)))]
    )
    assert [item.name for item in launch.fds] == ["tap"]
    launch.close()


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (
            LaunchPart(environment={"A": "1"}),
            LaunchPart(environment={"A": "2"}),
            "variable A differently",
        ),
        (LaunchPart(emulator=Path("/a")), LaunchPart(emulator=Path("/b")), "different emulators"),
    ],
)
def test_a_clash_names_both_plugins(one: LaunchPart, two: LaunchPart, words: str) -> None:
    """And says what to do."""
    with pytest.raises(PluginError, match=words) as error:
        merge_launch([("first", one), ("second", two)])
    assert "first and second" in str(error.value)
    assert "profile" in error.value.remedy


def test_one_name_for_two_descriptors_is_a_clash_and_closes_all() -> None:
    """They were given away, so nobody else would close them."""
    items = _fd("tap"), _fd("tap"), _fd("other")
    with pytest.raises(PluginError, match="first and second"):
        merge_launch([("first", LaunchPart(fds=items[:1])), ("second", LaunchPart(fds=items[1:]))])
    assert not any(_is_open(item) for item in items)


def test_too_many_descriptors_are_refused() -> None:
    """The kernel passes no more in one message."""
    fds = tuple(_fd(f"n{number}") for number in range(MOST_FDS + 1))
    with pytest.raises(PluginError, match=str(MOST_FDS)):
        merge_launch([("greedy", LaunchPart(fds=fds))])


@pytest.mark.parametrize("name", [ENV_TOKEN, "", "A=B"])
def test_variables_that_cannot_be_are_refused(name: str) -> None:
    """The manager's own among them."""
    with pytest.raises(PluginError, match="'odd'"):
        merge_launch([("odd", LaunchPart(environment={name: "x"}))])


@pytest.mark.parametrize("argument", ["fd={fd:tap}", "{fd:", "a{fd:x"])
def test_a_reference_to_no_descriptor_is_refused(argument: str) -> None:
    """Here, where the plugin's name is known, and not in the domain's log."""
    with pytest.raises(PluginError, match="'odd'"):
        merge_launch([("odd", LaunchPart(arguments=(argument,)))])


@pytest.mark.parametrize("path", ["disk", "/", "/srv/../etc"])
def test_what_is_shown_has_an_absolute_path(path: str) -> None:
    """That leads where it says."""
    with pytest.raises(PluginError, match="absolute path"):
        merge_launch([("odd", LaunchPart(visible=(Visible(path=Path(path)),)))])


def test_no_plugin_opens_for_writing_what_another_shows_for_reading() -> None:
    """One plugin may say both of one path."""
    read, write = (Visible(path=Path("/srv/disk"), writable=writable) for writable in (False, True))
    assert len(merge_launch([("one", LaunchPart(visible=(read, write)))]).visible) == 2
    with pytest.raises(PluginError, match="/srv/disk"):
        merge_launch([("one", LaunchPart(visible=(read,))), ("two", LaunchPart(visible=(write,)))])


@pytest.mark.parametrize(
    "part",
    [
        LaunchPart(arguments=("a\0b",)),
        LaunchPart(visible=(Visible(path=Path("/a\0b")),)),
        LaunchPart(environment={"A": "a\0b"}),
        LaunchPart(emulator=Path("/a\0b")),
    ],
)
def test_nul_characters_are_refused(part: LaunchPart) -> None:
    """No process can be given them."""
    with pytest.raises(PluginError, match="NUL"):
        merge_launch([("odd", part)])
