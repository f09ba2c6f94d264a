"""The commands and manifests of the pages are ones that the programs take."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import yaml

from tests.cluster_install.manifests import find, problems
from virtlet.cli import main
from virtlet.cli.manifest import read_manifest
from virtlet.kubectl import main as plugin

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
MADE = ("build/", "virtlet.kubeconfig")
"""Beginnings of files that earlier commands of a page make."""


def _blocks(*languages: str) -> list[tuple[str, str]]:
    """Each block of one of these languages, with its page."""
    return [
        (str(page.relative_to(ROOT)), text)
        for page in PAGES
        for language, text in BLOCK.findall(page.read_text())
        if language in languages
    ]


def _commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the console blocks as words, without redirections and here-documents."""
    for page, text in _blocks("console"):
        text = re.sub(r"<<(\w+)\n.*?^\1$", "", text, flags=re.M | re.S).replace("\\\n", " ")
        for line in text.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set("|&;"):
                    if words:
                        yield page, words
                    words = []
                elif not word.startswith((">", "<")):
                    words.append(word)


COMMANDS = sorted({(page, tuple(words)) for page, words in _commands()})


def _of(program: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(page, words) for page, words in COMMANDS if Path(words[0]).name == program]


@pytest.mark.parametrize(("page", "text"), _blocks("console"))
def test_a_shell_reads_every_block(page: str, text: str) -> None:
    read = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert read.returncode == 0, f"{page}: {read.stderr}"


PLUGIN = ("kubectl", "virtlet")


@pytest.mark.parametrize(("page", "words"), _of("virtlet"))
def test_commands_of_the_node_exist_with_their_options(page: str, words: tuple[str, ...]) -> None:
    _parse(main.group, page, words[:1], words[1:])


@pytest.mark.parametrize(
    ("page", "words"), [(page, words) for page, words in _of("kubectl") if words[:2] == PLUGIN]
)
def test_commands_of_the_plugin_exist_with_their_options(page: str, words: tuple[str, ...]) -> None:
    _parse(plugin.group, page, words[:2], words[2:])


def _parse(
    command: click.Command, page: str, program: tuple[str, ...], words: tuple[str, ...]
) -> None:
    args = list(words)
    context = click.Context(command, info_name=shlex.join(program))
    while isinstance(command, click.Group):
        if command.invoke_without_command and (not args or args[0].startswith("-")):
            break
        name = args.pop(0)
        found = command.get_command(context, name)
        assert found, f"{page}: {shlex.join(words)}"
        command = found
        context = click.Context(command, parent=context, info_name=name)
    try:
        command.parse_args(context, args)
    except click.BadParameter as error:
        if "does not exist" not in error.message:
            raise


@pytest.mark.parametrize(("page", "words"), _of("make"))
def test_tasks_of_the_makefile_exist(page: str, words: tuple[str, ...]) -> None:
    tasks = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert [word for word in words[1:] if "=" not in word and word not in tasks] == [], page


@pytest.mark.parametrize(("page", "words"), _of("install"))
def test_files_to_install_exist(page: str, words: tuple[str, ...]) -> None:
    files = [word for word in words[1:] if not word.startswith(("-", "/")) and not word.isdigit()]
    assert files, f"{page}: {shlex.join(words)}"
    assert [
        name for name in files if not name.startswith(MADE) and not (ROOT / name).exists()
    ] == []


@cache
def _kubectl_help(*verb: str) -> str:
    told = [
        subprocess.run(["kubectl", *words], capture_output=True, text=True, check=True).stdout
        for words in ([*verb, "--help"], ["options"])
    ]
    return "\n".join(told)


@pytest.mark.parametrize(
    ("page", "words"), [(page, words) for page, words in _of("kubectl") if words[:2] != PLUGIN]
)
def test_kubectl_knows_its_verbs_and_options(page: str, words: tuple[str, ...]) -> None:
    rest = list(words[1 : words.index("--") if "--" in words else None])
    while rest[0].startswith("-"):  # options that take a value before the verb
        rest = rest[2:]
    length = 3 if rest[:2] == ["create", "secret"] else 2
    verb = rest[:length] if rest[0] in ("config", "create") else rest[:1]
    told = _kubectl_help(*verb)
    for option in [word.partition("=")[0] for word in words if re.match(r"--\w", word)]:
        assert f"{option}=" in told or f"{option} " in told, f"{page}: {shlex.join(words)}"
    for name in [word for word in words if word.endswith(".yaml") and "/" in word]:
        assert (ROOT / name).exists(), page


def test_the_managers_kubeconfig_has_its_account_alone(tmp_path: Path) -> None:
    """The commands of docs/node.md, where the cluster answers with a token."""
    (steps,) = (text for page, text in _blocks("console") if "kubectl config view" in text)
    admin = tmp_path / "admin"
    cluster = {"server": "https://example.com:6443", "insecure-skip-tls-verify": True}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": "all-rights"}}],
        "contexts": [{"name": "now", "context": {"cluster": "c", "user": "admin"}}],
        "current-context": "now",
    }
    admin.write_text(yaml.safe_dump(document))
    steps = steps.replace("users.NAME", "users.admin").replace(
        "/etc/virtlet", str(tmp_path / "etc")
    )
    asked = (
        'kubectl() { case $* in *get\\ secret*) printf bWluZQ==;; *) command kubectl "$@";; esac; }'
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": str(admin)}
    subprocess.run(
        ["bash", "-eu"],
        input=f"{asked}\n{steps}",
        text=True,
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env=environment,
    )
    made = tmp_path / "etc" / "kubeconfig"
    assert made.stat().st_mode & 0o777 == 0o600
    account = yaml.safe_load(made.read_text())
    assert account["clusters"] == document["clusters"]
    assert account["users"] == [{"name": "virtlet", "user": {"token": "mine"}}]
    (context,) = account["contexts"]
    assert (context["name"], context["context"]["user"]) == ("now", "virtlet")


def test_the_binding_for_pods_objects_is_of_a_role_and_an_account_that_are_there() -> None:
    (words,) = {words for _, words in _of("kubectl") if "rolebinding" in words}
    dry = ["--dry-run=client", "--output", "yaml"]
    made = yaml.safe_load(subprocess.check_output([*words, *dry], text=True))
    assert list(problems(made)) == []
    (subject,) = made["subjects"]
    assert find(made["roleRef"]["kind"], made["roleRef"]["name"])
    assert find(subject["kind"], subject["name"])["metadata"]["namespace"] == subject["namespace"]


MANIFESTS = [
    (page, text)
    for page, text in _blocks("yaml")
    if re.search(r"^kind: Pod$", text, re.M) and "…" not in text
]


@pytest.mark.parametrize(("page", "text"), MANIFESTS)
def test_whole_pods_are_pods_of_a_vm(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    assert read_manifest(path, tmp_path).container.image.image, page


@pytest.mark.parametrize(("page", "text"), _blocks("yaml"))
def test_yaml_of_the_pages_is_yaml(page: str, text: str) -> None:
    assert list(yaml.safe_load_all(text)), page
