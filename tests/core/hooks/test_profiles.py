"""What the configuration says about plugins: who serves a handler, limits, what failures mean."""

import logging
import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from tests.fakes import models
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Policy, Profiles, read_policy
from virtlet.core.hooks.registry import Registry, discover
from virtlet.core.hooks.watch import HookWatch
from virtlet.errors import FailedPrecondition, InvalidArgument, PluginError
from virtlet.model.flavor import Flavor


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


@pytest.fixture
def mixed() -> Registry:
    names = ("Good", "Contributes", "WrongType", "Raises", "OtherApi")
    return discover(EntryPoint(n, f"tests.fakes.plugins:{n}", "virtlet") for n in names)


def test_limits_are_those_of_a_plugin_or_of_its_hooks(mixed: Registry) -> None:
    section = {
        "Good": {"hookPatience": 5},
        "Raises": {"hookPatience": {"virtlet_event": 7, "virtlet_fetch_image": 600}},
    }
    assert read_policy(section, mixed, ()) == Policy(
        {("Good", ""): 5, ("Raises", "virtlet_event"): 7, ("Raises", "virtlet_fetch_image"): 600}
    )


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"Goood": {}}, "'Goood' is not installed; did you mean 'Good'?"),
        ({"zzz": {}}, "'zzz' is not installed; known: Contributes, Good, Raises, WrongType"),
        ({5: {}}, "5 is not installed"),
        ({"Good": 5}, "'Good' must be a mapping with hookPatience or onFailure"),
        ({"Good": None}, "'Good' must be a mapping"),
        ({"Good": {"hookPatiens": 5}}, "unknown key 'hookPatiens'; did you mean 'hookPatience'?"),
        ({"Good": {True: 5}}, "unknown key True; known: hookPatience, onFailure"),
        ({"Good": {"hookPatience": 0}}, "hookPatience: 0 is not between 1 and 86400"),
        ({"Good": {"hookPatience": True}}, "hookPatience: 'True' is no whole number"),
        ({"Good": {"hookPatience": None}}, "hookPatience: 'None' is no whole number"),
        ({"Good": {"hookPatience": [5]}}, "is no whole number"),
        (
            {"Good": {"hookPatience": {"virtlet_evnt": 5}}},
            "'virtlet_evnt' is not a hook; did you mean 'virtlet_event'?",
        ),
        ({"Good": {"hookPatience": {"virtlet_event": "x"}}}, "'x' is no whole number"),
        ({"Good": {"onFailure": "ignore"}}, "onFailure must be refuse or log"),
        ({"Good": {"onFailure": ["log"]}}, "onFailure must be refuse or log"),
    ],
)
def test_a_malformed_section_of_plugins_is_refused(
    mixed: Registry, section: dict[Any, Any], problem: str
) -> None:
    with pytest.raises(InvalidArgument, match="^configuration: plugins: ") as caught:
        read_policy(section, mixed, ())
    assert problem in str(caught.value)


@pytest.mark.parametrize("plugin", ["OtherApi", "gone"])
def test_what_is_said_of_a_plugin_that_is_not_usable_is_passed_over(
    mixed: Registry, plugin: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    assert read_policy({plugin: {"onFailure": "log"}}, mixed, {"gone"}) == Policy()
    assert caplog.messages == [
        f"configuration: plugins: '{plugin}' is passed over: the plugin is not usable"
    ]


def test_an_optional_hook_that_fails_refuses_or_is_logged_as_the_operator_says(
    mixed: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = Hooks(mixed)
    vm = models.vm(tmp_path, plugins=("Contributes", "WrongType"))
    for section in ({}, {"WrongType": {"onFailure": "refuse"}}, {"Good": {"onFailure": "log"}}):
        hooks.govern(section, tmp_path)
        with pytest.raises(PluginError, match="'WrongType', hook virtlet_cloud_init: returned"):
            hooks.cloud_init(vm, Flavor(), ())
    hooks.govern({"WrongType": {"onFailure": "log"}}, tmp_path)
    caplog.clear()
    assert [name for name, _ in hooks.cloud_init(vm, Flavor(), ())] == ["Contributes"]
    [line] = caplog.records
    assert line.levelno == logging.ERROR
    assert line.__dict__["plugin"] == "WrongType"
    assert "returned a str instead of CloudInitPart" in line.__dict__["problem"]


def test_a_hook_that_is_not_optional_refuses_whatever_the_operator_says(
    mixed: Registry, tmp_path: Path
) -> None:
    hooks = Hooks(mixed)
    hooks.govern({"Raises": {"onFailure": "log"}}, tmp_path)
    vm = models.vm(tmp_path, plugins=("Raises",))
    with pytest.raises(PluginError, match="'Raises', hook virtlet_flavor"):
        hooks.flavor(vm.pod, vm.config, vm.image)


@pytest.mark.parametrize(
    ("limits", "hanging"),
    [
        ({}, False),
        ({("mine", ""): 0}, True),
        ({("mine", "virtlet_event"): 0}, True),
        ({("mine", ""): 0, ("mine", "virtlet_event"): 3600}, False),
        ({("other", ""): 0, ("mine", "virtlet_launch"): 0}, False),
    ],
)
def test_a_call_hangs_by_the_nearest_limit(
    limits: dict[tuple[str, str], float], hanging: bool
) -> None:
    watch = HookWatch()
    watch.limits = limits
    with watch.calling("mine", "virtlet_event"):
        assert bool(watch.hanging(threading.get_ident())) is hanging


@pytest.mark.parametrize("limited", [False, True])
def test_fetching_an_image_is_watched_where_it_has_a_limit_of_its_own(limited: bool) -> None:
    watch = HookWatch()
    watch.limits = {("mine", ""): 0, ("mine" if limited else "other", "virtlet_fetch_image"): 0}
    with watch.calling("mine", "virtlet_fetch_image"):
        found = watch.hanging(threading.get_ident())
    assert ("'mine' has not returned from virtlet_fetch_image" in found) is limited
