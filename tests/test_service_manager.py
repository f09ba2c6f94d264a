"""What the service manager is told, and by whom."""

import logging
import os
import socket
from pathlib import Path

import pytest

from virtlet.service_manager import READY, ServiceManager


@pytest.mark.parametrize("address", ["{dir}/notify", "@virtlet-test-{pid}"])
def test_it_is_told_by_this_process_and_by_no_child(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address.format(dir=tmp_path, pid=os.getpid())
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if address.startswith("@") else address)
        manager.settimeout(10)
        service = ServiceManager()
        assert "NOTIFY_SOCKET" not in os.environ
        service.tell(READY)
        assert manager.recv(100) == b"READY=1"


def test_where_nobody_waits_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    ServiceManager().tell(READY)
    assert caplog.records == []


def test_a_service_manager_that_is_gone_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    ServiceManager().tell(READY)
    assert "cannot notify the service manager: " in caplog.text
