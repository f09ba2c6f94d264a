"""The methods of the CRI that the stubs know."""

from __future__ import annotations

from typing import Any, TypeVar

from attrs import frozen
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from criproxy.rpc.messages import Code, RpcError
from virtlet.cri import api_pb2

_M = TypeVar("_M", bound=Message)


@frozen
class Method:
    """One method.

    Args:
        name: without the service, as in 'ListPodSandbox'; names are unique over both services.
        path: as in '/runtime.v1.RuntimeService/ListPodSandbox'.
        request: class of the request's message.
        response: class of the answer's messages.
        streaming: whether the answer has many messages.
    """

    name: str
    path: str
    request: type[Any]
    response: type[Any]
    streaming: bool


def _of_services() -> dict[str, Method]:
    found = {}
    for service in api_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            found[method.name] = Method(
                method.name,
                f"/{service.full_name}/{method.name}",
                getattr(api_pb2, method.input_type.name),
                getattr(api_pb2, method.output_type.name),
                method.server_streaming,
            )
    return found


BY_NAME = _of_services()
BY_PATH = {method.path: method for method in BY_NAME.values()}


def parse_request(method: Method, payload: bytes) -> Any:
    """A request's message.

    Raises:
        RpcError: INVALID_ARGUMENT when it is malformed.
    """
    try:
        return method.request.FromString(payload)
    except DecodeError as error:
        raise RpcError(Code.INVALID_ARGUMENT, f"malformed {method.name} request") from error


def parse_response(method: Method, payload: bytes, where: str) -> Any:
    """A message of an answer.

    Raises:
        RpcError: INTERNAL, naming the runtime, when it is malformed.
    """
    return _parsed(method, payload, where, method.response)


def check_response(method: Method, payload: bytes, where: str) -> None:
    """Check that a message of an answer is whole, so that another can be appended.

    The fields are not decoded, which takes a tenth of the time.

    Raises:
        RpcError: as `parse_response`.
    """
    _parsed(method, payload, where, Empty)


def _parsed(method: Method, payload: bytes, where: str, kind: type[Any]) -> Any:
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise RpcError(
            Code.INTERNAL, f"{where} sent a malformed answer to {method.name}"
        ) from error
