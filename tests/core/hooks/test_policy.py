"""What the configuration says of single plugins: time limits, and what failures mean."""

import logging
import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import models
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Policy, read_policy
from virtlet.core.hooks.registry import Registry, discover
from virtlet.core.hooks.watch import HookWatch
from virtlet.errors import InvalidArgument, PluginError
from virtlet.model.flavor import Flavor


@pytest.fixture
def registry() -> Registry:
    names = ("Good", "Contributes", "WrongType", "Raises", "OtherApi")
    return discover(EntryPoint(n, f"tests.fakes.plugins:{n}", "virtlet") for n in names)


def test_limits_are_those_of_a_plugin_or_of_its_hooks(registry: Registry) -> None:
    section = {
        "Good": {"hookPatience": 5},
        "Raises": {"hookPatience": {"virtlet_event": 7, "virtlet_fetch_image": 600}},
    }
    assert read_policy(section, registry, ()) == Policy(
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
def test_a_malformed_section_is_refused(
    registry: Registry, section: dict[Any, Any], problem: str
) -> None:
    with pytest.raises(InvalidArgument, match="^configuration: plugins: ") as caught:
        read_policy(section, registry, ())
    assert problem in str(caught.value)


@pytest.mark.parametrize("plugin", ["OtherApi", "gone"])
def test_what_is_said_of_a_plugin_that_is_not_usable_is_passed_over(
    registry: Registry, plugin: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    assert read_policy({plugin: {"onFailure": "log"}}, registry, {"gone"}) == Policy()
    assert caplog.messages == [
        f"configuration: plugins: '{plugin}' is passed over: the plugin is not usable"
    ]


def test_an_optional_hook_that_fails_refuses_or_is_logged_as_the_operator_says(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = Hooks(registry)
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
    registry: Registry, tmp_path: Path
) -> None:
    hooks = Hooks(registry)
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
