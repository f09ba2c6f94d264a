"""The stubs say on the wire exactly what CRI v1 says."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from tests.fakes.manager import Manager, Node
from virtlet.console.hub import ConsoleHub
from virtlet.core.config import options
from virtlet.core.config.load import load
from virtlet.core.events import EventTeller
from virtlet.core.metrics.manager import ManagerMetrics
from virtlet.core.metrics.sampler import Sampler
from virtlet.core.serving import assemble
from virtlet.cri import api_pb2 as cri

PUBLISHED = (Path(__file__).parent / "cri_v1.txt").read_text()
_SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("bool", "bytes", "double", "int32", "int64", "string", "uint32", "uint64")
}


def _type(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[n] for n in ("key", "value"))
        return f"map<{_type(key)},{_type(value)}>"
    kind = field.message_type or field.enum_type
    name = kind.name if kind is not None else _SCALARS[field.type]
    return f"repeated {name}" if field.is_repeated else name


def _message(message: Descriptor) -> list[str]:
    fields = sorted(message.fields, key=lambda field: field.number)
    return [f"message {message.name}"] + [f"  {f.number} {f.name} {_type(f)}" for f in fields]


def _enum(enum: EnumDescriptor) -> str:
    return f"enum {enum.name}: " + ", ".join(f"{v.name}={v.number}" for v in enum.values)


def _rendered() -> list[str]:
    file = cri.DESCRIPTOR
    lines = [f"package {file.package} syntax proto3"]
    for service in file.services_by_name.values():
        for method in service.methods:
            stream = "stream " if method.server_streaming else ""
            lines.append(
                f"rpc {service.name}.{method.name} ({method.input_type.name}) -> "
                f"{stream}{method.output_type.name}"
            )
    lines += [_enum(enum) for enum in file.enum_types_by_name.values()]
    for message in file.message_types_by_name.values():
        lines += _message(message)
    return lines


def test_every_service_enum_message_and_field_is_as_published() -> None:
    assert sorted(_rendered()) == sorted(PUBLISHED.splitlines())


def test_the_nested_enum_of_security_profiles_has_its_published_values() -> None:
    kind = cri.SecurityProfile.ProfileType
    assert dict(kind.items()) == {"RuntimeDefault": 0, "Unconfined": 1, "Localhost": 2}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[list[str]]:
    """The calls of a manager's real parts, put together as for serving but not started."""
    manager = Manager(Node(tmp_path))
    context = manager.context
    context.events = EventTeller(context.hooks, context.profiles)
    flags = {"data_dir": str(tmp_path)}
    config = load(options.CORE_OPTIONS, file=None, environment={}, flags=flags)
    with closing(asyncio.new_event_loop()) as loop:
        parts = assemble(context, config, Sampler(context), ConsoleHub(), loop, ManagerMetrics())
        yield [call.name for call in parts.calls]
        parts.executions.close(1)
    manager.close()


def test_every_call_of_the_definition_is_served(served: list[str]) -> None:
    """Each once: no call is declared twice, none is unknown."""
    known = [
        f"{service.name}.{method.name}"
        for service in cri.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert sorted(served) == sorted(known)
