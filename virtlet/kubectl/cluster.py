"""The cluster as kubectl reaches it: its own options, its errors, and what a pod there is."""

import functools
import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import click

from virtlet.cli.ending import CommandFailed

F = TypeVar("F", bound=Callable[..., Any])

NODE_LABEL = "virtlet.cloud/node"
_CLASS = re.compile(r"virtlet(-.*)?")
_REASON = re.compile(r"Error from server \((\w+)\)")
_OPTIONS = ("context", "kubeconfig", "server", "user", "as")


class Refused(CommandFailed):
    """The API server answered with an error, or there is no way to it."""

    def __init__(self, text: str, reason: str = "") -> None:
        self.reason = reason
        """`NotFound`, `Forbidden` or another word of Kubernetes' Status; "" where there is none."""
        super().__init__(text)


class Kubectl:
    """kubectl, in a cluster, as a user and in a namespace.

    Args:
        options: of kubectl, that say which cluster and as whom.
        namespace: "" for that of the current context.
    """

    def __init__(self, options: Sequence[str] = (), namespace: str = "") -> None:
        self._options = options
        self._namespace = namespace

    @property
    def given_namespace(self) -> str:
        """The one that was asked for; "" for none."""
        return self._namespace

    @functools.cached_property
    def namespace(self) -> str:
        """The one that was asked for, else that of the current context."""
        if self._namespace:
            return self._namespace
        wanted = ("config", "view", "--minify", "--output=jsonpath={..namespace}")
        said = self._run(self._argv(*wanted))
        return (said.stdout.strip() if said.returncode == 0 else "") or "default"

    def elsewhere(self, namespace: str) -> "Kubectl":
        """The same cluster and user in another namespace."""
        return Kubectl(self._options, namespace)

    def argv(self, *words: str) -> list[str]:
        """The command line of a kubectl in the namespace."""
        return self._argv(f"--namespace={self.namespace}", *words)

    def get(self, *path: str, **query: str) -> Any:
        """An object, or a list of them, by its path.

        Args:
            path: its parts; each is quoted.
            query: parameters.

        Raises:
            Refused: the server did, or it cannot be reached.
        """
        return self._raw(("get", "--raw"), (), path, query)

    def post(self, *path: str, **query: str) -> Any:
        """What the answer is to a request without a body that has something done, as `get`.

        Raises:
            Refused: the server did, or it cannot be reached.
        """
        return self._raw(("create", "--raw"), ("-f", "/dev/null"), path, query)

    def _raw(
        self,
        verb: Sequence[str],
        options: Sequence[str],
        path: Sequence[str],
        query: Mapping[str, str],
    ) -> Any:
        words = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
        address = "".join(f"/{quote(part, safe='')}" for part in path) + (words and f"?{words}")
        said = self._run(self._argv(*verb, address, *options))
        if said.returncode != 0:
            text = said.stderr.strip()
            found = _REASON.search(text)
            what = " ".join(verb)
            raise Refused(text or f"kubectl {what} {address} failed", found[1] if found else "")
        try:
            return json.loads(said.stdout)
        except ValueError:
            raise Refused(f"{address}: the API server's answer is no JSON") from None

    def in_namespace(self, *path: str, **query: str) -> Any:
        """As `get`, of the core API and in the namespace."""
        return self.get("api", "v1", "namespaces", self.namespace, *path, **query)

    def pod(self, name: str) -> Mapping[str, Any]:
        """A pod that is a VM.

        Args:
            name: as a word of kubectl: POD or pod/POD.

        Raises:
            Refused: there is none, it may not be read, or it is no VM.
        """
        pod: Mapping[str, Any] = self.in_namespace("pods", name.removeprefix("pod/"))
        if not self.is_vm(pod):
            runtime = pod["spec"].get("runtimeClassName")
            what = f"RuntimeClass {runtime}" if runtime else "no RuntimeClass"
            raise Refused(
                f"pod {self.namespace}/{pod['metadata']['name']} is no VM: it has {what}, and VMs "
                "have one whose handler is Virtlet's; use kubectl itself for it"
            )
        return pod

    def is_vm(self, pod: Mapping[str, Any]) -> bool:
        """Whether a pod's RuntimeClass is Virtlet's by its name, its handler or its nodes.

        Without a RuntimeClass it is one where Virtlet is the node's only runtime.
        """
        runtime = pod["spec"].get("runtimeClassName")
        if not runtime:
            statuses = pod.get("status", {}).get("containerStatuses") or []
            return any(s.get("containerID", "").startswith("virtlet://") for s in statuses)
        return runtime in self.vm_classes or bool(_CLASS.fullmatch(runtime))

    @functools.cached_property
    def vm_classes(self) -> frozenset[str]:
        """RuntimeClasses of VMs, where they may be listed."""
        try:
            found = self.get("apis", "node.k8s.io", "v1", "runtimeclasses")["items"]
        except Refused:
            return frozenset()
        return frozenset(
            one["metadata"]["name"]
            for one in found
            if _CLASS.fullmatch(one["handler"])
            or NODE_LABEL in ((one.get("scheduling") or {}).get("nodeSelector") or {})
        )

    def _argv(self, *words: str) -> list[str]:
        return ["kubectl", *self._options, *words]

    def _run(self, argv: list[str]) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(argv, capture_output=True, text=True, errors="replace")
        except FileNotFoundError:
            raise Refused(NO_KUBECTL) from None


NO_KUBECTL = "kubectl is not there: install it, or put its directory into PATH"


def with_cluster(function: F) -> F:
    """Give a command kubectl's options of the same names, and a `Kubectl` as its first argument."""

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        options = tuple(
            f"--{name}={value}" for name in _OPTIONS if (value := given.pop(f"of_{name}"))
        )
        return function(Kubectl(options, given.pop("of_namespace")), **given)

    told: Any = command
    for name in reversed(_OPTIONS):
        flags = ["-s", "--server"] if name == "server" else [f"--{name}"]
        told = click.option(*flags, f"of_{name}", default="", help="As kubectl's.")(told)
    option = click.option("-n", "--namespace", "of_namespace", default="", help="As kubectl's.")
    made: F = option(told)
    return made
