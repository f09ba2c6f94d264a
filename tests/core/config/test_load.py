"""Where settings come from, and which layer wins."""

from pathlib import Path

import pytest

from virtlet.core.config.load import load
from virtlet.core.config.options import (
    CORE_OPTIONS,
    DATABASE,
    DISABLE_LOGGING,
    LISTEN,
    LOG_LEVEL,
    STREAM_PORT,
)
from virtlet.errors import InvalidArgument
from virtlet.model.option import Settings


def _load(
    tmp_path: Path,
    text: str | None = None,
    environment: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
) -> Settings:
    file = None
    if text is not None:
        file = tmp_path / "virtlet.yaml"
        file.write_text(text)
    return load(CORE_OPTIONS, file=file, environment=environment or {}, flags=flags or {})


def test_the_defaults_are_the_original_ones(tmp_path: Path) -> None:
    config = _load(tmp_path)
    assert config[LISTEN] == Path("/run/virtlet.sock")
    assert config[DATABASE] == Path("/var/lib/virtlet/virtlet.db")
    assert config[STREAM_PORT] == 10010


def test_the_data_directory_is_the_root_of_every_default_path(tmp_path: Path) -> None:
    config = _load(tmp_path, flags={"dataDir": "/x"})
    assert config[LISTEN] == Path("/x/virtlet.sock")
    assert config[DATABASE] == Path("/x/virtlet.db")


def test_the_environment_wins_over_the_file_and_a_flag_over_both(tmp_path: Path) -> None:
    text = "streamPort: 1\n"
    environment = {"VIRTLET_STREAM_PORT": "2"}
    assert _load(tmp_path, text)[STREAM_PORT] == 1
    assert _load(tmp_path, text, environment)[STREAM_PORT] == 2
    assert _load(tmp_path, text, environment, {"streamPort": "3"})[STREAM_PORT] == 3


@pytest.mark.parametrize("endpoint", ["/x/a.sock", "unix:///x/a.sock", "unix:/x/a.sock"])
def test_a_socket_is_named_as_a_path_or_as_a_kubelet_names_it(
    tmp_path: Path, endpoint: str
) -> None:
    assert _load(tmp_path, flags={"criSocketPath": endpoint})[LISTEN] == Path("/x/a.sock")


@pytest.mark.parametrize(
    ("text", "level"),
    [("debug", "debug"), ("error", "error"), ("0", "error"), ("1", "info"), ("5", "debug")],
)
def test_a_log_level_is_a_word_or_one_of_the_originals_numbers(
    tmp_path: Path, text: str, level: str
) -> None:
    assert _load(tmp_path, f"logLevel: {text}\n")[LOG_LEVEL] == level


def test_a_yaml_boolean_is_a_boolean(tmp_path: Path) -> None:
    assert _load(tmp_path, "disableLogging: yes\n")[DISABLE_LOGGING] is True


def test_handlers_are_handed_on_as_they_are(tmp_path: Path) -> None:
    config = _load(tmp_path, "handlers: {big: {flavor: {vcpus: 2}}}\n")
    assert config.sections["handlers"] == {"big": {"flavor": {"vcpus": 2}}}


def test_a_setting_of_a_refused_plugin_is_passed_over_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "virtlet.yaml"
    file.write_text("colour: red\nstreamPort: 1\n")
    config = load(CORE_OPTIONS, file=file, environment={}, flags={}, refused=["painter"])
    assert config[STREAM_PORT] == 1
    assert "setting 'colour' is passed over: unknown, or of a refused plugin (painter)" in (
        caplog.text
    )


def test_a_setting_of_a_plugin_that_is_not_installed_any_more_is_passed_over_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "virtlet.yaml"
    file.write_text("dataDir: /x\nstreamPorts: 2\nstreamPort: 1\n")
    config = load(
        CORE_OPTIONS,
        file=file,
        environment={},
        flags={},
        departed=lambda data_dir: {"streamPorts": f"plugin 'many' of {data_dir}"},
    )
    assert config[STREAM_PORT] == 1
    assert "setting 'streamPorts' is passed over: it is of plugin 'many' of /x" in caplog.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("colour: red\n", "unknown setting 'colour'; if it is of a plugin that is not installed"),
        ("streamport: 1\n", "unknown setting 'streamport'; did you mean 'streamPort'"),
        ("streamPort: 99999\n", "streamPort: 99999 is not between 0 and 65535"),
        ("criSocketPath: run/x\n", "is no absolute path"),
        ("disableLogging: perhaps\n", "neither true nor false"),
        ("a: [1\n", "no valid YAML at line 2"),
        ("- a\n", "must hold a mapping"),
        ("a: " + "[" * 5000, "nested too deep"),
        ("a: &a [*a]\n", "nested more than 40 levels deep"),
        ("streamPort: " + "9" * 5000 + "\n", "no valid YAML"),
        ("dataDir: 2001-99-99\n", "no valid YAML"),
        ('dataDir: "/tmp/a\\0b"\n', "dataDir: holds a NUL character"),
        ('dataDir: "/tmp/a\\ud800b"\n', "half of a surrogate pair"),
        ("handlers: 0\n", "handlers must be a mapping"),
        ('emulatorUser: "a\\0b"\n', "emulatorUser: holds a NUL character"),
        ("emulatorUser: {a: b}\n", r"emulatorUser: is a mapping \(wanted: text\)"),
        ("emulatorUser: [[a]]\n", "emulatorUser: is a list of more than single values"),
        ("streamPort: 1\n---\nstreamPort: 2\n", "holds a second document at line 2"),
        ("criSocketPath: tcp://127.0.0.1:1\n", "is no unix socket: write its path"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        _load(tmp_path, text)
    assert "virtlet.yaml" in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "virtlet.yaml").write_bytes(b"streamPort: 1\n\xff")
    with pytest.raises(InvalidArgument, match="virtlet.yaml: is no UTF-8 text"):
        load(CORE_OPTIONS, file=tmp_path / "virtlet.yaml", environment={}, flags={})


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="No such file"):
        load(CORE_OPTIONS, file=tmp_path / "none", environment={}, flags={})


def test_a_wrong_flag_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="flag --stream-port: 'x' is no whole number"):
        _load(tmp_path, flags={"streamPort": "x"})
