"""The node's `virtlet` command as a person uses it, on a pod that runs."""

import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import tarfile
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
import yaml

from tests.e2e.conftest import Pod, make_manifest
from tests.polling import until
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

TIMEOUT = 60


class Typist:
    """A command on a terminal of 111 columns and 33 lines, and who types there."""

    def __init__(self, argv: list[str]) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (33, 111))
        self._modes = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
        self._theirs = theirs
        self.heard = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def hears(self, words: bytes, typing: bytes = b"") -> None:
        """Wait until something is shown, and type something meanwhile."""

        def listen() -> bytes:
            os.write(self._ours, typing)
            if select.select([self._ours], [], [], 0.5)[0]:
                self.heard += os.read(self._ours, 4096)
            assert words in self.heard, self.heard[-500:]
            return self.heard

        until(listen, repr(words), TIMEOUT)

    def types(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def ended(self) -> int:
        """Wait for its end; the terminal's modes are as before."""
        code = self.process.wait(TIMEOUT)
        assert termios.tcgetattr(self._theirs) == self._modes
        return code


@pytest.fixture(scope="module")
def pod(node: Playground) -> Iterator[Pod]:
    """One pod for all, of a namespace that no other test's pod has."""
    with node.client() as client:
        manifest = make_manifest(node, "asked")
        manifest.pod.metadata.namespace = "of-the-command-line"
        manifest.pod.annotations["VirtletCloudInitMetaData"] = "secret-thing: hunter2"
        manifest.pod.annotations["example.com/password"] = "hunter2"
        manifest.container.envs.append(cri.KeyValue(key="PASSWORD", value=b"hunter2"))
        pod = Pod(node, client, manifest).up()
        try:
            pod.wait_for_console("login:")
            yield pod
        finally:
            client.remove_pod(pod.id)


def _argv(pod: Pod, *words: str) -> list[str]:
    """A command in the node's network, where the manager's streaming server listens."""
    inside = ["nsenter", f"--net={pod.node.netns}"]
    of_group = 2 if words[0] == "diag" else 1
    return [
        *(*inside, sys.executable, "-m", "virtlet.cli.main"),
        *(*words[:of_group], "--socket", f"unix://{pod.node.socket}", *words[of_group:]),
    ]


def _run(pod: Pod, *words: str, code: int = 0, given: str = "") -> str:
    said = subprocess.run(
        _argv(pod, *words), capture_output=True, text=True, input=given, timeout=TIMEOUT
    )
    assert said.returncode == code, (said.stdout, said.stderr)
    return said.stdout + (said.stderr if code else "")


def test_pods_are_listed_by_namespace_and_state_in_each_form(pod: Pod) -> None:
    mine = ("-n", "of-the-command-line")
    assert _run(pod, "ps", *mine, "-q") == f"{pod.id}\n"
    assert _run(pod, "ps", *mine, "-q", "--state", "notready") == ""
    table = _run(pod, "ps", *mine)
    assert table.splitlines()[0].split()[:2] == ["POD", "NAMESPACE/NAME"]
    assert f"of-the-command-line/{pod.pod.metadata.name}" in table
    assert "RUNNING" in table
    listed = json.loads(_run(pod, "ps", *mine, "-o", "json"))
    assert [item["id"] for item in listed["items"]] == [pod.id]
    assert yaml.safe_load(_run(pod, "ps", *mine, "-o", "yaml")) == listed


def test_a_command_has_its_input_output_and_exit_code(pod: Pod) -> None:
    """By a name, by its namespace with it, and by the beginning of an id."""
    name = pod.pod.metadata.name
    assert _run(pod, "exec", name, "uname", "-s") == "Linux\n"
    script = "cat; echo problem >&2; exit 7"
    said = _run(pod, "exec", "-i", pod.id[:8], "sh", "-c", script, code=7, given="typed\n")
    assert said == "typed\nproblem\n"
    missing = _run(pod, "exec", f"of-the-command-line/{name}", "no-such-program", code=1)
    assert "there is no such program" in missing


def test_sessions_lead_to_the_guest_from_another_network_namespace(pod: Pod) -> None:
    """As of a manager in a container: its streaming server is on its own loopback address."""
    argv = _argv(pod, "exec", pod.pod.metadata.name, "uname", "-s")[2:]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT)
    assert (said.stdout, said.stderr) == ("Linux\n", "")
    with Typist(_argv(pod, "attach", "-it", pod.pod.metadata.name)[2:]) as typist:
        typist.hears(b"login:", typing=b"\r")
        typist.types(b"\x1d")
        assert typist.ended() == 0


def test_a_running_vm_is_written_to_a_file_once(pod: Pod, tmp_path: Path) -> None:
    path = tmp_path / "asked.tar"
    assert str(path) in _run(pod, "checkpoint", pod.pod.metadata.name, str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert "asked.tar exists" in _run(pod, "checkpoint", pod.id[:8], str(path), code=1)
    assert pod.exec("true").exit_code == 0


def test_a_command_has_a_terminal_of_ours(pod: Pod) -> None:
    # The size comes a little after the start, once something was printed.
    script = "until stty size | grep 33; do sleep 0.1; done; read word; echo said $word"
    with Typist(_argv(pod, "exec", "-it", pod.pod.metadata.name, "sh", "-c", script)) as typist:
        typist.hears(b"33 111")
        typist.types(b"hello\r")
        typist.hears(b"said hello")
        assert typist.ended() == 0


def test_the_console_is_attached_and_left_by_its_key(pod: Pod) -> None:
    with Typist(_argv(pod, "attach", "-it", pod.pod.metadata.name)) as typist:
        typist.hears(b"login:", typing=b"\r")
        typist.types(b"\x1d")
        assert typist.ended() == 0


def test_the_log_is_shown_from_its_end_and_from_a_time_on(pod: Pod) -> None:
    name = pod.pod.metadata.name
    whole = _run(pod, "logs", name)
    assert "login:" in whole
    assert "Linux version" in whole
    last = _run(pod, "logs", "--tail", "3", name)
    assert "login:" in last
    assert "Linux version" not in last
    assert _run(pod, "logs", "--since", "1h", name).startswith(whole)
    assert _run(pod, "logs", "--since", "2096-01-01T00:00:00Z", name) == ""
    said = _run(pod, "logs", "--since", "yesterday", name, code=2)
    assert "neither a span such as 10m" in said


def test_all_that_is_known_of_a_pod_is_one_document(pod: Pod) -> None:
    document = yaml.safe_load(_run(pod, "inspect", pod.pod.metadata.name))
    assert document["status"]["id"] == pod.id
    [vm] = document["containers"]
    assert vm["status"]["state"] == "CONTAINER_RUNNING"
    assert isinstance(vm["info"], dict)
    assert json.loads(_run(pod, "inspect", "-o", "json", pod.id)) is not None


def test_consumption_is_shown(pod: Pod) -> None:
    lines = _run(pod, "stats").splitlines()
    [mine] = [line for line in lines if line.startswith("of-the-command-line/")]
    assert re.search(r"guest +\d+\.\d\d +\d+\.\d MiB +\d+\.\d MiB$", mine.rstrip())
    stats = json.loads(_run(pod, "stats", "-o", "json"))["stats"]
    assert pod.vm in [one["attributes"]["id"] for one in stats]


def test_versions_conditions_and_images_are_told(pod: Pod) -> None:
    document = yaml.safe_load(_run(pod, "info"))
    assert document["version"]["runtimeName"] == "virtlet"
    assert [c["type"] for c in document["status"]["conditions"]][:2] == [
        "RuntimeReady",
        "NetworkReady",
    ]
    [image, *_] = _run(pod, "images", "-q").splitlines()
    assert image.startswith("sha256:")
    assert "no image is called 'nobody/has:this'" in _run(pod, "rmi", "nobody/has:this", code=1)


def test_what_happens_is_told_until_it_is_interrupted(pod: Pod) -> None:
    argv = _argv(pod, "events")
    with (
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process,
        pod.node.client() as client,
    ):
        assert process.stdout is not None
        config = cri.PodSandboxConfig()
        config.CopyFrom(pod.pod)
        config.metadata.name, config.metadata.uid = "seen", "of-an-event"
        # Nothing says when it listens: pods come and go until it told of one.
        told: list[str] = []

        def listen() -> None:
            told.append(process.stdout.readline())  # type: ignore[union-attr]

        listener = threading.Thread(target=listen)
        listener.start()
        for attempt in range(30):
            config.metadata.attempt = attempt
            one = client.run_pod(config, pod.manifest.handler)
            client.remove_pod(one)
            listener.join(1)
            if told:
                break
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(TIMEOUT) == 130
        finally:
            process.kill()
        listener.join()
    assert re.search(r"^\d\d:\d\d:\d\d  \w+ +\S+", told[0])


def test_pods_are_completed_by_their_names(pod: Pod) -> None:
    name = pod.pod.metadata.name
    environment = {
        **os.environ,
        "_VIRTLET_COMPLETE": "bash_complete",
        "COMP_WORDS": f"virtlet logs {name[:3]}",
        "COMP_CWORD": "2",
        "VIRTLET_CRI_SOCKET_PATH": str(pod.node.socket),
    }
    said = subprocess.run(
        [sys.executable, "-m", "virtlet.cli.main"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=TIMEOUT,
    )
    assert f"plain,{name}" in said.stdout.splitlines()


def test_a_report_of_trouble_has_states_and_logs_and_no_secret(pod: Pod, tmp_path: Path) -> None:
    file = tmp_path / "report.tar.gz"
    config = ("--config", str(pod.node.config_file))
    assert _run(pod, "diag", "dump", *config, str(file)) == f"{file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with tarfile.open(file) as tar:
        found = {
            entry.name.partition("/")[2]: made.read()
            for entry in tar
            if (made := tar.extractfile(entry))
        }
    wanted = {"versions.json", "info.json", "images.json", "stats.json", "pods.json", "doctor.json"}
    assert wanted <= set(found)
    assert not [name for name, text in found.items() if b"hunter2" in text]
    [mine] = [one for one in json.loads(found["pods.json"]) if one["status"]["id"] == pod.id]
    assert mine["status"]["annotations"]["VirtletCloudInitMetaData"] == "[21 characters]"
    assert mine["containers"][0]["status"]["state"] == "CONTAINER_RUNNING"
    again = _run(pod, "diag", "dump", *config, str(file), code=1)
    assert "is there already" in again
