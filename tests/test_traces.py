"""Traces are off unless the environment asks for them, and cost nothing then."""

import subprocess
import sys
import time

import pytest

from virtlet.traces import OFF, TracesUnusable, from_environment

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "node"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_are_off_unless_there_is_an_endpoint(environment: dict[str, str]) -> None:
    assert from_environment("virtlet", environment) is OFF


def test_opentelemetry_is_not_imported_while_they_are_off() -> None:
    program = (
        "import os, sys, criproxy.proxy, criproxy.__main__, virtlet.core.daemon\n"
        "from virtlet.traces import from_environment\n"
        "from_environment('virtlet', {}).step('disk', {})\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def test_another_protocol_is_refused() -> None:
    environment = {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with pytest.raises(TracesUnusable, match="by grpc alone"):
        from_environment("virtlet", environment)


def test_without_the_extra_the_remedy_is_told() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from virtlet.traces import *\n"
        f"try: from_environment('virtlet', {ENDPOINT})\n"
        "except TracesUnusable as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "install virtlet[traces]" in ran.stdout, ran.stderr


def test_the_end_does_not_wait_for_a_collector_that_is_away() -> None:
    traces = from_environment("virtlet", ENDPOINT)
    assert traces is not OFF
    traces.begin("p.S/M", dict, alone=True).end("OK", "", {})
    before = time.monotonic()
    traces.close()
    assert time.monotonic() - before < 9
