"""How hooks are called, who adjusts an answer, and what a plugin's misbehaviour becomes."""

import logging
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import models
from tests.fakes.adjusting_plugins import Told
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import Registry, discover
from virtlet.errors import FailedPrecondition, PluginError
from virtlet.model.event import Event, EventKind
from virtlet.model.execution import GuestCommand
from virtlet.model.flavor import Flavor
from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig, Profile


def _registry(*names: str) -> Registry:
    return discover(EntryPoint(name, f"tests.fakes.plugins:{name}", "virtlet") for name in names)


def _hooks(*names: str) -> Hooks:
    return Hooks(_registry(*names))


def _flavor(hooks: Hooks, directory: Path, *plugins: str) -> Flavor:
    vm = models.vm(directory, plugins=plugins)
    return hooks.flavor(vm.pod, vm.config, vm.image)


@pytest.mark.parametrize(("first", "vcpus"), [("LargeFlavor", 8), ("SmallFlavor", 1)])
def test_of_two_that_would_answer_the_first_of_the_handlers_list_does(
    tmp_path: Path, first: str, vcpus: int
) -> None:
    registry = _registry("LargeFlavor", "SmallFlavor")
    names = sorted(registry.extra, key=lambda name: name != first)
    profile = Profiles({"x": {"plugins": names}}, registry).get("x")
    assert _flavor(Hooks(registry), tmp_path, *profile.plugins).vcpus == vcpus


def test_a_plugin_that_the_handler_does_not_name_is_not_asked(tmp_path: Path) -> None:
    hooks = _hooks("LargeFlavor", "SmallFlavor")
    assert _flavor(hooks, tmp_path, "SmallFlavor").vcpus == 1


def test_a_plugin_that_declines_leaves_the_answer_to_the_next(tmp_path: Path) -> None:
    names = ("SmallFlavor", "Declines")
    assert _flavor(_hooks(*names), tmp_path, *names).vcpus == 1


def test_when_nobody_answers_the_error_names_the_hook_and_who_was_asked(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"virtlet_flavor.*asked: Declines"):
        _flavor(_hooks("Declines"), tmp_path, "Declines")


def test_a_raising_plugin_is_named_and_its_text_is_kept_out_of_the_error(tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        _flavor(_hooks("Raises"), tmp_path, "Raises")
    assert caught.value.plugin == "Raises"
    assert caught.value.hook == "virtlet_flavor"
    assert "RuntimeError" in str(caught.value)
    assert "take it out of the handler" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_wrong_type_is_named_with_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"'WrongType'.*returned a dict instead of Flavor"):
        _flavor(_hooks("WrongType"), tmp_path, "WrongType")


def _recognize(plugin: str, file: Path) -> None:
    file.write_bytes(b"x")
    _hooks(plugin).recognize_image(Profile(handler="", plugins=(plugin,)), "busybox", file)


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        ("Nameless", "returned a RecognizedImage without a format or of a negative size"),
        ("Shrinks", "returned a RecognizedImage without a format or of a negative size"),
        ("Scribbles", "changed the file, which is for reading alone"),
        ("Takes", "changed the file, which is for reading alone"),
    ],
)
def test_a_plugin_that_recognises_an_image_wrongly_is_named(
    tmp_path: Path, plugin: str, problem: str
) -> None:
    with pytest.raises(PluginError, match=f"'{plugin}'.*virtlet_recognize_image.*{problem}"):
        _recognize(plugin, tmp_path / "part")


def test_an_object_without_the_methods_of_a_hypervisor_or_session_is_refused(
    tmp_path: Path,
) -> None:
    hooks, profile = _hooks("WrongType"), Profile(handler="", plugins=("WrongType",))
    with pytest.raises(PluginError, match="returned a str instead of Hypervisor"):
        hooks.hypervisor(profile)
    machine = models.machine(tmp_path, plugins=("WrongType",))
    with pytest.raises(PluginError, match="returned an int instead of ExecSession"):
        hooks.guest_exec(machine, GuestCommand(argv=("true",)))


def test_every_active_plugin_contributes_to_the_seed_by_name(tmp_path: Path) -> None:
    hooks = _hooks("Contributes", "Declines")
    parts = hooks.cloud_init(models.vm(tmp_path, plugins=("Contributes", "Declines")), Flavor(), ())
    assert [name for name, _ in parts] == ["Contributes"]


def test_the_error_of_an_observer_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    profile = Profile(handler="", plugins=("Raises",))
    with caplog.at_level(logging.ERROR):
        _hooks("Raises").event(profile, Event(kind=EventKind.POD_CREATED, subject="x"))
    assert "observer failed" in caplog.text


def test_undoing_with_a_plugin_that_is_gone_says_so(tmp_path: Path) -> None:
    hooks = _hooks("Good")
    with pytest.raises(
        FailedPrecondition, match="virtlet_teardown_network is needed: plugin 'gone'"
    ):
        hooks.teardown_network("gone", models.pod(tmp_path), None)


FIRST = "02:00:00:00:00:00"
SECOND = "02:00:00:00:00:01"


def _entry(name: str) -> EntryPoint:
    return EntryPoint(name, f"tests.fakes.adjusting_plugins:{name}", "virtlet")


def _adjusted_flavor(directory: Path, *active: str, installed: tuple[str, ...] = ()) -> Flavor:
    vm = models.vm(directory, plugins=("One", *active))
    hooks = Hooks(discover(map(_entry, ("One", *active, *installed))))
    return hooks.flavor(vm.pod, vm.config, vm.image)


def test_each_plugin_gets_what_the_one_before_made_in_the_order_of_the_profile(
    tmp_path: Path,
) -> None:
    assert _adjusted_flavor(tmp_path, "Adds", "Content", "Doubles").vcpus == 4
    assert _adjusted_flavor(tmp_path, "Doubles", "Content", "Adds").vcpus == 3


def test_a_plugin_that_the_handler_does_not_name_adjusts_nothing(tmp_path: Path) -> None:
    assert _adjusted_flavor(tmp_path, "Adds", installed=("Doubles",)).vcpus == 2


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        ("Raises", r"raised ValueError \(adjusting_plugins.py, line"),
        ("WrongType", "returned a dict instead of Flavor"),
        ("Spoils", "made a Flavor whose vcpus is a str instead of int"),
    ],
)
def test_who_adjusts_badly_is_named_alone(tmp_path: Path, plugin: str, problem: str) -> None:
    with pytest.raises(PluginError, match=problem) as caught:
        _adjusted_flavor(tmp_path, "Adds", plugin)
    assert (caught.value.plugin, caught.value.hook) == (plugin, "virtlet_adjust_flavor")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("plugin", ["Raises", "WrongType", "Spoils"])
def test_an_operator_may_do_without_an_adjustment_that_fails(tmp_path: Path, plugin: str) -> None:
    vm = models.vm(tmp_path, plugins=("One", plugin, "Adds"))
    hooks = Hooks(discover(map(_entry, ("One", plugin, "Adds"))))
    hooks.govern({plugin: {"onFailure": "log"}}, tmp_path)
    assert hooks.flavor(vm.pod, vm.config, vm.image).vcpus == 2


def test_an_adjustment_that_is_passed_over_leaves_nothing_behind(tmp_path: Path) -> None:
    """Also where the plugin changed what it was given before it failed."""
    vm = models.vm(tmp_path, plugins=("One", "Meddles", "Adds"))
    hooks = Hooks(discover(map(_entry, ("One", "Meddles", "Adds"))))
    hooks.govern({"Meddles": {"onFailure": "log"}}, tmp_path)
    assert hooks.flavor(vm.pod, vm.config, vm.image) == Flavor(vcpus=2)


def _adjusted(directory: Path, nic: dict[str, Any], network: dict[str, Any]) -> Network:
    registry = discover(map(_entry, ("One", "Told")))
    told = registry.manager.get_plugin("Told")
    assert isinstance(told, Told)
    told.nic, told.network = nic, network
    hooks, pod = Hooks(registry), models.pod(directory, plugins=("One", "Told"))
    made = hooks.setup_network("One", pod)
    assert made is not None
    return hooks.adjust_network(pod, made)


def test_what_a_guest_is_told_of_a_network_can_be_changed(tmp_path: Path) -> None:
    nic = {
        "mac": "52:54:00:12:34:56",
        "mtu": 1300,
        "addresses": ("10.0.0.7/24", "fd00::7/64"),
        "routes": (Route(destination="0.0.0.0/0", gateway="10.0.0.1"),),
        "queues": 4,
        "boot_order": 1,
    }
    dns = DnsConfig(servers=("10.0.0.53",))
    network = _adjusted(tmp_path, nic, {"dns": dns})
    assert network.nics[0] == Nic(name="eth0", **nic)  # type: ignore[arg-type]
    assert network.nics[1].mac == SECOND
    assert network.dns == dns


@pytest.mark.parametrize(
    ("nic", "network", "problem"),
    [
        ({}, {"netns": Path("/run/netns/x")}, "changed netns, which is left to the plugin that"),
        ({}, {"details": "mine"}, "changed details, which"),
        ({}, {"nics": ()}, "changed the number of nics, which"),
        ({"name": "net1"}, {}, r"changed nics\[0\].name, which"),
        ({"kind": "hostdev"}, {}, r"changed nics\[0\].kind, which"),
        ({"device": "tap9"}, {}, r"changed nics\[0\].device, which"),
        ({"mac": "02:00:00:00:00:AA"}, {}, r"nics\[0\].mac is not a unicast MAC address in lower"),
        ({"mac": "01:00:5e:00:00:01"}, {}, "is not a unicast MAC address"),
        ({"mac": f"{FIRST},x=y"}, {}, "is not a unicast MAC address"),
        ({"mac": SECOND}, {}, "nics have one MAC address twice"),
        ({"mtu": 67}, {}, r"nics\[0\].mtu is below 68"),
        ({"queues": 0}, {}, r"nics\[0\].queues is below 1"),
        ({"boot_order": -1}, {}, r"nics\[0\].boot_order is below 0"),
        ({"addresses": ("10.0.0.300/24",)}, {}, r"nics\[0\].addresses has one that is not in CIDR"),
        ({"mtu": 65536}, {}, r"nics\[0\].mtu is above 65535"),
        ({"queues": 257}, {}, r"nics\[0\].queues is above 256"),
        ({"addresses": ("10.0.0.3",)}, {}, "addresses has one that is not in CIDR"),
        ({"addresses": ("fe80::1%x } drop/64",)}, {}, "addresses has one that is not in CIDR"),
        ({"routes": (Route(destination="::/0", gateway="10.0.0.1"),)}, {}, "routes has one whose"),
        ({}, {"dns": DnsConfig(servers=("dns.example",))}, "dns has a server or search domain"),
        (
            {},
            {"dns": DnsConfig(searches=("a\nconf-file=/x",))},
            "dns has a server or search domain",
        ),
        ({"routes": (Route(destination="10.0.0.1/24"),)}, {}, r"nics\[0\].routes has one whose"),
        ({"routes": (Route(destination="0.0.0.0/0", gateway="x"),)}, {}, "routes has one whose"),
    ],
)
def test_what_would_undo_or_connect_nothing_is_refused_by_name(
    tmp_path: Path, nic: dict[str, Any], network: dict[str, Any], problem: str
) -> None:
    with pytest.raises(PluginError, match=problem) as caught:
        _adjusted(tmp_path, nic, network)
    assert (caught.value.plugin, caught.value.hook) == ("Told", "virtlet_adjust_network")


def test_a_network_that_nobody_could_work_with_is_its_makers_fault(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"nics\[0\].mac is not a unicast") as caught:
        Hooks(discover([_entry("Shouts")])).setup_network("Shouts", models.pod(tmp_path))
    assert (caught.value.plugin, caught.value.hook) == ("Shouts", "virtlet_setup_network")
