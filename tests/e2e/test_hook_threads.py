"""The threads that docs/hooks.md names are those that a real manager calls hooks on."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.docs.page import sections
from tests.e2e.conftest import ROOT, TINY, Pod, make_manifest
from tests.fakes.recording_plugin import FILE
from virtlet import hookspecs
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

THREADS = {
    "main": "MainThread",
    "start-up": "start-up",
    "worker": "work",
    "status": "status",
    "fetch": "image-fetch",
    "events": "events",
}
"""The page's word to the beginning of the thread's name."""


def test_hooks_are_called_on_the_threads_that_the_page_names(tmp_path: Path) -> None:
    """All hooks that are asked of everybody, in a pod's whole life."""
    record, info = tmp_path / "record", tmp_path / "recording-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: recording\nVersion: 1.0\n")
    entry = "recording = tests.fakes.recording_plugin:Plugin"
    (info / "entry_points.txt").write_text(f"[virtlet]\n{entry}\n")
    with Playground(
        {"tiny": TINY},
        subnet="10.126.0.0/16",
        settings={"handlers": {"": {"plugins": ["recording"]}}},
        environment={"PYTHONPATH": f"{tmp_path}:{ROOT}", FILE: str(record)},
    ) as node:
        manifest = make_manifest(node)
        (node.directory / "mount").mkdir()
        host_path = str(node.directory / "mount")
        manifest.container.mounts.add(container_path="/mnt", host_path=host_path)
        with node.client() as client:
            client.call("Status", cri.StatusRequest())
            pod = Pod(node, client, manifest).up()
            with pytest.raises(CallFailed):  # the guest boots yet
                request = cri.ExecSyncRequest(container_id=pod.vm, cmd=["true"], timeout=1)
                client.call("ExecSync", request, timeout=60)
            pod.down()
    called: dict[str, set[str]] = defaultdict(set)
    for line in record.read_text().splitlines():
        hook, thread = line.split(" ", 1)
        called[hook].add(re.sub(r"_\d+$", "", thread))
    expected = {
        hook: {THREADS[re.split("[,;]", section.fields["Thread"])[0]]}
        for hook, section in sections().items()
        if hookspecs.HOOKS[hook] not in ("inverse", "maker")
    }
    assert called == expected
