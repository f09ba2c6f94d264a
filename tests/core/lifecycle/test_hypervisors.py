"""The hypervisors of several handlers: one that is away is no other's affair."""

from importlib.metadata import EntryPoint

import pytest

from tests.fakes.hypervisor import FakeHypervisor, Faults
from tests.fakes.plugins import Current
from virtlet import hookimpl
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.profiles import Profiles
from virtlet.core.hooks.registry import discover
from virtlet.core.lifecycle.hypervisors import Hypervisors
from virtlet.errors import FailedPrecondition, InvalidArgument, Unavailable


class Everyday(Current):
    """Offers the default handler's hypervisor."""

    def __init__(self) -> None:
        self.hypervisor = FakeHypervisor(Faults())

    @hookimpl
    def virtlet_hypervisor(self) -> FakeHypervisor:
        return self.hypervisor


class Special(Everyday):
    """Offers another one."""

    @hookimpl
    def virtlet_hypervisor(self) -> FakeHypervisor:
        return self.hypervisor


class Misled(Current):
    """Is set to a hypervisor that cannot be."""

    @hookimpl
    def virtlet_hypervisor(self) -> FakeHypervisor:
        raise InvalidArgument("there is no such hypervisor")


class Rig:
    """Two handlers with a hypervisor each, and one without."""

    def __init__(self) -> None:
        plugins = ("everyday", "Everyday"), ("special", "Special")
        registry = discover(
            [EntryPoint(name, f"{__name__}:{kind}", "virtlet") for name, kind in plugins]
        )
        everyday, special = (registry.manager.get_plugin(name) for name, _ in plugins)
        assert isinstance(everyday, Everyday)
        assert isinstance(special, Special)
        self.everyday, self.special = everyday.hypervisor, special.hypervisor
        self.profiles = Profiles(
            {
                "": {"plugins": ["everyday"]},
                "special": {"plugins": ["special"]},
                "bare": {},
            },
            registry,
        )
        self.hypervisors = Hypervisors(Hooks(registry), self.profiles)

    def plugin_of(self, handler: str) -> str:
        return self.hypervisors.plugin_of(self.profiles.get(handler))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_each_handler_has_its_own(rig: Rig) -> None:
    rig.hypervisors.open(lambda seen: None)
    assert rig.plugin_of("") == "everyday"
    assert rig.plugin_of("special") == "special"
    with pytest.raises(FailedPrecondition, match="'bare' offers a hypervisor"):
        rig.plugin_of("bare")


def test_one_that_is_away_is_named_and_refuses_its_own_vms_alone(rig: Rig) -> None:
    rig.special.away = "no answer"
    rig.hypervisors.require("everyday")
    with pytest.raises(Unavailable, match=r"plugin special is away \(no answer\)"):
        rig.hypervisors.require("special")
    health = rig.hypervisors.default_health()
    assert health.ready
    assert health.message == "hypervisor of plugin special: no answer"


def test_the_runtime_is_ready_as_the_default_handler_is(rig: Rig) -> None:
    rig.everyday.away = "no answer"
    health = rig.hypervisors.default_health()
    assert not health.ready
    assert health.message == "hypervisor of plugin everyday: no answer"


def test_one_whose_health_breaks_is_away_and_named(rig: Rig) -> None:
    rig.special.faults.always["health"] = ZeroDivisionError()
    with pytest.raises(Unavailable, match="plugin 'special'.*health raised ZeroDivisionError"):
        rig.hypervisors.require("special")


def test_one_that_does_not_open_is_not_served_and_the_others_are(rig: Rig) -> None:
    rig.special.faults.always["open"] = OSError("no such device")
    rig.hypervisors.open(lambda seen: None)
    assert set(rig.hypervisors.all) == {"everyday"}
    with pytest.raises(FailedPrecondition, match="'special' did not start: .*open raised OSError"):
        rig.plugin_of("special")
    assert rig.plugin_of("") == "everyday"


def test_a_default_handler_that_cannot_be_served_says_why() -> None:
    registry = discover([EntryPoint("everyday", f"{__name__}:Everyday", "virtlet")])
    profiles = Profiles({"": {"plugins": ["nowhere"]}}, registry)
    health = Hypervisors(Hooks(registry), profiles).default_health()
    assert not health.ready
    assert "plugin 'nowhere' is not installed" in health.message


class Bare(Current):
    """Offers a hypervisor whose program is not installed."""

    @hookimpl
    def virtlet_hypervisor(self) -> FakeHypervisor:
        raise FailedPrecondition("emulator /x: install QEMU")


def _beside_a_bare_default() -> tuple[Hypervisors, Profiles, FakeHypervisor]:
    plugins = ("bare", "Bare"), ("special", "Special")
    registry = discover([EntryPoint(n, f"{__name__}:{kind}", "virtlet") for n, kind in plugins])
    special = registry.manager.get_plugin("special")
    assert isinstance(special, Special)
    sections = {"": {"plugins": ["bare"]}, "special": {"plugins": ["special"]}}
    profiles = Profiles(sections, registry)
    return Hypervisors(Hooks(registry), profiles), profiles, special.hypervisor


def test_without_a_hypervisor_of_the_default_handler_the_others_are_served() -> None:
    hypervisors, profiles, _ = _beside_a_bare_default()
    hypervisors.open(lambda seen: None)
    health = hypervisors.default_health()
    assert health.ready
    assert health.message == "handler '': emulator /x: install QEMU"
    assert hypervisors.plugin_of(profiles.get("special")) == "special"
    with pytest.raises(
        FailedPrecondition, match="handler '' cannot be served: emulator /x: install QEMU"
    ):
        hypervisors.plugin_of(profiles.get(""))
    with pytest.raises(FailedPrecondition, match="'bare', whose.*: emulator /x: install QEMU"):
        hypervisors.named("bare")


def test_the_runtime_is_not_ready_when_no_handler_can_be_served() -> None:
    hypervisors, _, special = _beside_a_bare_default()
    special.away = "no answer"
    health = hypervisors.default_health()
    assert not health.ready
    assert health.message == (
        "handler '': emulator /x: install QEMU; hypervisor of plugin special: no answer"
    )


def test_a_default_handler_whose_setting_cannot_be_ends_the_start() -> None:
    registry = discover([EntryPoint("misled", f"{__name__}:Misled", "virtlet")])
    profiles = Profiles({"": {"plugins": ["misled"]}}, registry)
    with pytest.raises(InvalidArgument, match="there is no such hypervisor"):
        Hypervisors(Hooks(registry), profiles)


def test_every_handler_that_cannot_be_served_is_logged_with_its_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = discover([EntryPoint("misled", f"{__name__}:Misled", "virtlet")])
    sections = {"odd": {"plugins": ["misled"]}, "old": {"plugins": ["nowhere"]}}
    Hypervisors(Hooks(registry), Profiles(sections, registry))
    lines = [r for r in caplog.records if r.getMessage() == "handler not served"]
    problems = {line.handler: line.problem for line in lines}  # type: ignore[attr-defined]
    assert set(problems) == {"", "odd", "old"}
    assert "offers a hypervisor" in problems[""]
    assert problems["odd"] == "there is no such hypervisor"
    assert "'nowhere' is not installed" in problems["old"]


def test_the_default_handlers_has_to_open(rig: Rig) -> None:
    rig.everyday.faults.always["open"] = Unavailable("no libvirt here")
    with pytest.raises(Unavailable, match="no libvirt here"):
        rig.hypervisors.open(lambda seen: None)
