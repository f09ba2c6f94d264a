"""Models refuse fields of a wrong type, and answers of hooks are checked."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from attrs import evolve

from tests.fakes.models import untyped
from virtlet import hookspecs
from virtlet.model.cloudinit import CloudInitPart
from virtlet.model.disk import Disk, Share, Volume
from virtlet.model.flavor import Flavor
from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.image import ImageSource
from virtlet.model.launch import LaunchFd, LaunchPart
from virtlet.model.network import Network, Nic, Route
from virtlet.model.option import TEXT, Annotation, Option
from virtlet.model.pod import DnsConfig
from virtlet.model.typed import WrongType, shape

NETWORK = Network(
    netns=Path("/run/netns/x"),
    nics=(
        Nic(
            name="eth0",
            mac="02:00:00:00:00:01",
            mtu=1500,
            addresses=("10.1.0.2/16",),
            routes=(Route(destination="0.0.0.0/0"),),
        ),
        Nic(
            name="net1",
            mac="02:00:00:00:00:02",
            mtu=1500,
            addresses=("10.2.0.2/16",),
            routes=(Route(destination="10.2.0.0/16"),),
        ),
    ),
    dns=DnsConfig(servers=("10.1.0.1",)),
)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Flavor, Flavor(extras={"a": "b"})),
        (Network | None, NETWORK),
        (Network | None, None),
        (Volume, Share(host_path=Path("/srv"), guest_path="/data", tag="tag")),
        (
            LaunchPart,
            LaunchPart(
                arguments=("-x",),
                environment={"A": "b"},
                fds=(LaunchFd(name="tap", fd=3),),
                cgroups=(Path("/c"),),
            ),
        ),
        (
            CloudInitPart,
            CloudInitPart(
                meta_data={"a": [1, {}]},
                user_data={},
                script="x",
                network_config=None,
                overrides=frozenset({"a"}),
            ),
        ),
        (Sequence[str], ["x"]),
        (Sequence[Annotation[Any]], (Annotation(name="A", kind=TEXT, default="", help=""),)),
        (
            Sequence[Option[Any]],
            [Option(field="a", flag="--a", env="A", kind=TEXT, default="", help="")],
        ),
        (Mapping[str, Observation], {"x": Observation(vm_id="x", state=DomainState.RUNNING)}),
        (tuple[tuple[str, str], ...], (("a", "b"),)),
        (float, 1),
        (Callable[[], None], print),
    ],
)
def test_what_is_right_has_no_flaw(kind: Any, value: object) -> None:
    assert shape(kind).inspect(value) is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Flavor(vcpus=untyped("two")), "a Flavor whose vcpus is a str instead of int"),
        (lambda: Flavor(vcpus=untyped(True)), "a Flavor whose vcpus is a bool instead of int"),
        (
            lambda: Flavor(guest_agent=untyped(1)),
            "a Flavor whose guest_agent is an int instead of bool",
        ),
        (
            lambda: Flavor(extras=untyped({"x": 1})),
            "a Flavor whose extras['x'] is an int instead of str",
        ),
        (
            lambda: Flavor(extras=untyped({1: "x"})),
            "a Flavor whose extras (one of its keys) is an int instead of str",
        ),
        (
            lambda: LaunchPart(arguments=untyped(("-x", 1))),
            "a LaunchPart whose arguments[1] is an int instead of str",
        ),
        (
            lambda: LaunchPart(arguments=untyped("-x")),
            "a LaunchPart whose arguments is a str instead of tuple",
        ),
        (
            lambda: LaunchFd(name="tap", fd=untyped(None)),
            "a LaunchFd whose fd is a NoneType instead of int",
        ),
        (
            lambda: CloudInitPart(meta_data=untyped(["x"])),
            "a CloudInitPart whose meta_data is a list instead of Mapping",
        ),
        (
            lambda: Network(netns=untyped("/x")),
            "a Network whose netns is a str instead of Path or None",
        ),
        (
            lambda: Network(netns=None, nics=untyped(("eth0",))),
            "a Network whose nics[0] is a str instead of Nic",
        ),
        (
            lambda: ImageSource(name=untyped(5), url=untyped(6)),
            "an ImageSource whose name is an int instead of str",
        ),
        (
            lambda: evolve(NETWORK, nics=untyped([])),
            "a Network whose nics is a list instead of tuple",
        ),
        (
            lambda: Option(
                field="a", flag="--a", env="A", kind=untyped("text"), default="", help=""
            ),
            "an Option whose kind is a str instead of Kind",
        ),
    ],
)
def test_a_model_with_a_wrong_field_is_never_made(make: Callable[[], object], said: str) -> None:
    with pytest.raises(WrongType, match=re.escape(said)):
        make()


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (Flavor, {"vcpus": 2}, "a dict instead of Flavor"),
        (Disk | Share, "x", "a str instead of Disk or Share"),
        (Sequence[str], "text", "a str instead of list or tuple"),
        (Sequence[str], [1], "a list whose item [0] is an int instead of str"),
        (tuple[tuple[str, str], ...], (("a",),), "a tuple whose item [0] is a tuple instead of"),
        (float, "1", "a str instead of float"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(kind: Any, value: Any, said: str) -> None:
    flaw = shape(kind).inspect(value)
    assert flaw is not None
    assert said in flaw.of(value)


def test_a_refusal_holds_no_value() -> None:
    with pytest.raises(WrongType) as caught:
        Flavor(vcpus=untyped("hunter2"))
    assert "hunter2" not in str(caught.value)


def test_an_unknown_kind_of_type_is_refused_rather_than_passed() -> None:
    with pytest.raises(TypeError, match="no shape is known"):
        shape("a forward reference")


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_every_hook_s_result_can_be_checked(hook: str) -> None:
    assert shape(get_type_hints(getattr(hookspecs, hook))["return"]).name
