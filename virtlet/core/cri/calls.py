"""How a call is declared, and the one wrapper around every call.

The wrapper reads the request, logs, measures the time and turns errors into statuses.
"""

import asyncio
import contextvars
import enum
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

import grpc
from attrs import frozen
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from virtlet.core import log_setup
from virtlet.core.cri.subjects import Subjects
from virtlet.cri import api_pb2 as cri
from virtlet.errors import InvalidArgument, VirtletError
from virtlet.traces import CONTEXT, OFF, Traces


class CallKind(enum.Enum):
    """Where a call is answered, so that no reader ever waits for a worker."""

    READ = "read"
    """On the event loop, from memory: List*, *Status. Takes microseconds."""
    LOOK = "look"
    """On a thread kept for short looks at the node's file systems."""
    MEASURE = "measure"
    """On a thread kept for statistics, which a hypervisor that hangs holds up."""
    STATUS = "status"
    """On a thread kept for Status, which names what holds up the others."""
    STREAM = "stream"
    """On the event loop, as an asynchronous iterator of replies."""
    WORK = "work"
    """On a worker thread: whatever changes the node or waits for a guest."""


@frozen
class CallClient:
    """Who waits for the reply to an attended call; may be asked on any thread."""

    waits: Callable[[], bool]
    """Whether it still does: to be asked now and then by work that is worth nothing without it."""
    time_left: Callable[[], float | None]
    """Seconds that it still will; None for no limit."""


@frozen
class Call:
    """One served RPC."""

    name: str
    """`Service.Method`, as in the definition."""
    kind: CallKind
    serve: Callable[..., Any]
    """Request message to reply message, or for STREAM to an asynchronous iterator of them; raises
    VirtletError."""
    attended: bool = False
    """Whether `serve` takes a second argument, the `Caller`."""
    end: Callable[[], None] = lambda: None
    """For a STREAM without an end of its own: ends all of them, now and later, on the event loop;
    called when the server stops."""


log = logging.getLogger(__name__)

Handler = Callable[[Any, Any], Awaitable[Any]]
"""Takes a request's bytes and a `grpc.aio.ServicerContext`, which cannot be subscripted at run
time."""

_MESSAGE_LIMIT = 2500
"""Bytes of an error that reach the client: gRPC carries them in headers of 8 KiB, and three
characters for every byte outside ASCII."""


_PACKAGE = cri.DESCRIPTOR.package

Counted = Callable[[str, str, float], None]
"""Called with the method, the status code's name and the seconds of a call that has ended."""


def instrument(
    call: Call,
    executors: dict[CallKind, Executor],
    subjects: Subjects,
    counted: Counted,
    traces: Traces = OFF,
) -> Handler:
    """The asynchronous handler of a call.

    Args:
        call: what is served.
        executors: where LOOK and WORK calls run.
        subjects: knows what requests are about.
        counted: hears of every call.
        traces: has a span of each call that changes something or is part of a trace.
    """
    method = call.name.partition(".")[2]
    read = _reader(call, subjects)
    traced, alone = f"{_PACKAGE}.{call.name.replace('.', '/')}", call.kind is CallKind.WORK

    async def handle(received: bytes, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        started = time.perf_counter()
        code, message, repeated = grpc.StatusCode.OK, "", False
        request, reply = None, None
        facts: dict[str, str] = {}
        span = traces.begin(traced, partial(_context_of, context), alone=alone)
        try:
            request = read(received)
            if call.kind is CallKind.READ:
                return call.serve(request)
            # Before it is served: a removal leaves nobody to ask for names.
            facts = subjects.facts(request)
            log_setup.about.set({"call": method, **facts})
            span.enter()
            loop = asyncio.get_running_loop()
            gone = threading.Event()
            caller = CallClient(lambda: not gone.is_set(), context.time_remaining)
            arguments = (request, caller) if call.attended else (request,)
            # In this context: what is logged on the way says what it is about.
            serve = partial(contextvars.copy_context().run, call.serve)
            work = loop.run_in_executor(executors[call.kind], serve, *arguments)
            # Shielded: a client that goes away does not stop work that is half done.
            try:
                reply = await asyncio.shield(work)
                return reply
            except asyncio.CancelledError:
                gone.set()
                work.add_done_callback(lambda done: _log_unheard(method, done))
                raise
        except VirtletError as error:
            code, message = grpc.StatusCode[error.status], describe(error)
            repeated = error.repeated
        except asyncio.CancelledError:
            code, message = grpc.StatusCode.CANCELLED, "the client went away"
            raise
        except (Exception, SystemExit) as error:
            log.exception("call failed unexpectedly", extra={"call": method})
            code = grpc.StatusCode.INTERNAL
            message = f"{type(error).__name__} inside the manager; its log has the details"
        finally:
            duration = time.perf_counter() - started
            counted(method, code.name, duration)
            known = partial(_facts, subjects, request, reply, facts)
            if span.recording:
                span.end(code.name, _cut(message), known())
            _log(call, code, message, duration, known, repeated=repeated)
        return await context.abort(code, _cut(message))

    return handle


def instrument_stream(
    call: Call, subjects: Subjects, counted: Counted
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """The asynchronous handler of a call that answers with a stream."""
    method = call.name.partition(".")[2]
    read = _reader(call, subjects)

    async def handle(
        received: bytes, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[Any]:
        started = time.perf_counter()
        code, message = grpc.StatusCode.OK, ""
        request = None
        try:
            request = read(received)
            async for reply in call.serve(request):
                yield reply
        except VirtletError as error:
            code, message = grpc.StatusCode[error.status], describe(error)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except (Exception, SystemExit) as error:
            log.exception("stream failed unexpectedly", extra={"call": method})
            code = grpc.StatusCode.INTERNAL
            message = f"{type(error).__name__} inside the manager; its log has the details"
        finally:
            duration = time.perf_counter() - started
            counted(method, code.name, duration)
            _log(call, code, message, duration, lambda: subjects.facts(request))
        if code is not grpc.StatusCode.OK:
            await context.abort(code, _cut(message))

    return handle


def _context_of(context: "grpc.aio.ServicerContext[Any, Any]") -> dict[str, str]:
    """The metadata of a call that says which trace it is part of."""
    received = context.invocation_metadata() or ()
    return {name: str(value) for name, value in received if name in CONTEXT}


def _facts(subjects: Subjects, request: Any, reply: Any, before: dict[str, str]) -> dict[str, str]:
    return subjects.facts(request, reply) | before


def describe(error: BaseException) -> str:
    """An error's message with what was noted on its way."""
    return "; ".join([str(error), *getattr(error, "__notes__", ())])


def _reader(call: Call, subjects: Subjects) -> Callable[[bytes], Any]:
    """Turns what was received into the call's request message, with whole ids.

    It is done here and not by gRPC, which would answer UNKNOWN, and log a traceback.
    """
    service, _, method = call.name.partition(".")
    definition = cri.DESCRIPTOR.services_by_name[service].methods_by_name[method]
    parse = GetMessageClass(definition.input_type).FromString
    complete = subjects.completer(definition.input_type)

    def read(received: bytes) -> Any:
        try:
            request = parse(received)
        except DecodeError as error:
            raise InvalidArgument(f"the request cannot be read: {error}") from None
        complete(request)
        return request

    return read


def _log_unheard(method: str, done: "asyncio.Future[Any]") -> None:
    """Say how work ended whose client has gone; nobody else will."""
    error = None if done.cancelled() else done.exception()
    if error is not None:
        known = isinstance(error, VirtletError)
        what = describe(error) if known else type(error).__name__
        log.warning(
            "call failed after its client went away",
            extra={"call": method, "problem": what},
            exc_info=None if known else error,
        )


def _cut(message: str) -> str:
    return message.encode()[:_MESSAGE_LIMIT].decode(errors="ignore")


def _log(
    call: Call,
    code: grpc.StatusCode,
    message: str,
    duration: float,
    facts: Callable[[], Mapping[str, str]],
    *,
    repeated: bool = False,
) -> None:
    """Write a call's line: changes as information, what was refused as a warning the first time,
    all else at debug."""
    refused = code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)
    level = logging.INFO if call.kind is CallKind.WORK else logging.DEBUG
    if refused:
        level = logging.DEBUG if repeated else logging.WARNING
    if not log.isEnabledFor(level):
        return
    extra: dict[str, object] = {
        "call": call.name.partition(".")[2],
        "code": code.name,
        "ms": round(duration * 1000, 2),
    }
    if message:
        extra["problem"] = message
    log.log(level, "call refused" if refused else "call", extra={**extra, **facts()})
