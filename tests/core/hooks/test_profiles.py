"""Which plugins serve a handler."""

from importlib.metadata import EntryPoint

import pytest
from attrs import evolve

from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import Registry, discover
from virtlet.errors import FailedPrecondition, InvalidArgument


@pytest.fixture
def registry() -> Registry:
    names = ("SmallFlavor", "LargeFlavor", "OtherApi")
    found = discover(EntryPoint(n, f"tests.fakes.plugins:{n}", "virtlet") for n in names)
    return evolve(found, builtin=("SmallFlavor",), extra=("LargeFlavor",))


def test_the_default_handler_has_the_built_in_plugins_alone(registry: Registry) -> None:
    assert Profiles({}, registry).get("").plugins == ("SmallFlavor",)


def test_a_handler_adds_the_plugins_it_names(registry: Registry) -> None:
    profiles = Profiles({"big": {"plugins": ["LargeFlavor"]}}, registry)
    assert profiles.get("big").plugins == ("SmallFlavor", "LargeFlavor")
    assert profiles.get("").plugins == ("SmallFlavor",)


def test_the_first_of_a_handlers_list_has_the_most_to_say() -> None:
    names = ("Contributes", "LargeFlavor", "Raises", "SmallFlavor")
    found = discover(EntryPoint(n, f"tests.fakes.plugins:{n}", "virtlet") for n in names)
    registry = evolve(
        found, builtin=("LargeFlavor", "SmallFlavor"), extra=("Contributes", "Raises")
    )

    def order(*plugins: str) -> tuple[str, ...]:
        return Profiles({"x": {"plugins": list(plugins)}}, registry).get("x").plugins

    assert order("Contributes", "Raises") == ("LargeFlavor", "SmallFlavor", "Raises", "Contributes")
    assert order("Raises", "Contributes")[2:] == ("Contributes", "Raises")
    assert order("SmallFlavor", "Raises") == ("LargeFlavor", "Raises", "SmallFlavor")


def test_a_handler_can_leave_a_built_in_plugin_out(registry: Registry) -> None:
    sections = {"odd": {"plugins": ["LargeFlavor"], "without": ["SmallFlavor"]}}
    assert Profiles(sections, registry).get("odd").plugins == ("LargeFlavor",)


def test_the_empty_section_name_sets_up_the_default_handler(registry: Registry) -> None:
    profiles = Profiles({"": {"flavor": {"vcpus": 2}}}, registry)
    assert profiles.get("").flavor == {"vcpus": 2}


def test_an_unknown_handler_is_refused_with_the_known_ones(registry: Registry) -> None:
    profiles = Profiles({"big": {}}, registry)
    with pytest.raises(
        InvalidArgument, match=r"'bug'.*did you mean 'big'.*known handlers: '', 'big'"
    ):
        profiles.get("bug")


def test_a_refused_plugin_breaks_only_the_handlers_that_name_it(registry: Registry) -> None:
    profiles = Profiles({"old": {"plugins": ["OtherApi"]}, "good": {}}, registry)
    assert [profile.handler for profile in profiles.all] == ["", "good"]
    with pytest.raises(FailedPrecondition, match="built for version 99"):
        profiles.get("old")


def test_a_plugin_that_is_not_installed_is_named(registry: Registry) -> None:
    profiles = Profiles({"x": {"plugins": ["nowhere"]}}, registry)
    with pytest.raises(FailedPrecondition, match="'nowhere' is not installed"):
        profiles.get("x")


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"plugin": []}, "unknown key 'plugin'"),
        ({"plugins": "LargeFlavor"}, "plugins must be a list of plugin names"),
        ({"plugins": 5}, "plugins must be a list of plugin names"),
        ({"plugins": True}, "plugins must be a list of plugin names"),
        ({"plugins": [["LargeFlavor"]]}, "plugins must be a list of plugin names"),
        ({"plugins": ["LargeFlavor", "LargeFlavor"]}, "plugins names a plugin twice"),
        ({"without": 7}, "without must be a list of plugin names"),
        ({"without": {"SmallFlavor": 1}}, "without must be a list of plugin names"),
        ({"without": False}, "without must be a list of plugin names"),
        ({"flavor": 3}, "flavor must be a mapping"),
        ({"flavor": []}, "flavor must be a mapping"),
        ("big", "must be a mapping"),
        (False, "must be a mapping"),
    ],
)
def test_a_malformed_section_is_refused(registry: Registry, section: object, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=f"handler 'x'.*{problem}"):
        Profiles({"x": section}, registry)


def test_what_is_left_empty_is_as_if_not_there(registry: Registry) -> None:
    empty = {"plugins": None, "without": None, "flavor": None}
    profiles = Profiles({"x": empty, "y": None}, registry)
    assert [profile.plugins for profile in profiles.all] == [("SmallFlavor",)] * 3
