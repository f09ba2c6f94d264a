"""Declared settings: options of the manager and annotations of a pod.

A declaration is both the documentation and the typed key to read the value with:
`config[CNI_BIN_DIR]`, `VCPU_COUNT.of(pod)`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from attrs import field, frozen

from virtlet.errors import InvalidArgument
from virtlet.model.bounded_yaml import load_yaml
from virtlet.model.plain import UnquotedError, kind_of, quote
from virtlet.model.pod import Pod
from virtlet.model.quantity import parse_bytes
from virtlet.model.typed import typed

T = TypeVar("T")


@frozen(kw_only=True, field_transformer=typed)
class Kind(Generic[T]):
    """How a text becomes a value.

    Args:
        name: what the documentation calls the type.
        parse: text to value; raises ValueError with what is wrong with it.
    """

    name: str
    parse: Callable[[str], T]


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off", ""):
        return False
    raise ValueError(f"{quote(text)} is neither true nor false")


def integer(low: int, high: int) -> Kind[int]:
    """A whole number from `low` to `high`, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text.strip(), 10)
        except ValueError:
            raise ValueError(f"{quote(text)} is no whole number") from None
        if not low <= value <= high:
            raise ValueError(f"{value} is not between {low} and {high}")
        return value

    return Kind(name=f"integer {low}..{high}", parse=parse)


def choice(*values: str) -> Kind[str]:
    """One of the given words."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"{quote(text)} is none of {', '.join(repr(v) for v in values)}")
        return text

    return Kind(name=" or ".join(values), parse=parse)


def _mapping(text: str) -> dict[str, Any]:
    value = load_yaml(text)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UnquotedError(f"must be a mapping, not {kind_of(value)}")
    return value


TEXT: Kind[str] = Kind(name="text", parse=str)
PATH: Kind[Path] = Kind(name="path", parse=Path)
BOOLEAN: Kind[bool] = Kind(name="boolean", parse=_boolean)
TRUE_ONLY: Kind[bool] = Kind(
    name='boolean (only "true" is true)', parse=lambda text: text == "true"
)
BYTES: Kind[int] = Kind(name="quantity", parse=parse_bytes)
WORDS: Kind[tuple[str, ...]] = Kind(
    name="comma-separated list", parse=lambda text: tuple(w for w in text.split(",") if w)
)
LINES: Kind[tuple[str, ...]] = Kind(
    name="one per line", parse=lambda text: tuple(s for s in map(str.strip, text.splitlines()) if s)
)
MAPPING: Kind[dict[str, Any]] = Kind(name="YAML mapping", parse=_mapping)
"""Of plain data, as YAML or JSON; the empty text is the empty mapping."""


@frozen(kw_only=True, field_transformer=typed)
class Option(Generic[T]):
    """A setting of the manager."""

    field: str
    """Its name in the configuration file and in Virtlet's configuration objects."""
    flag: str
    """Its command line flag, with the dashes."""
    env: str
    """Its environment variable."""
    kind: Kind[T]
    default: str
    """As it would be written; `{data_dir}` in it becomes the data directory, other braces stay."""
    help: str
    mappable: bool = False
    """Whether a VirtletConfigMapping of the cluster may set it; never what keeps the cluster from
    the node (paths, users, sockets, addresses, whom to trust)."""


@frozen(kw_only=True, field_transformer=typed)
class Annotation(Generic[T]):
    """A pod annotation that a plugin understands."""

    name: str
    kind: Kind[T]
    default: T
    help: str
    secret: bool = False
    """True when the value must not be shown, not even in an error message."""

    def of(self, pod: Pod) -> T:
        """The value the pod asks for, or the default.

        Raises:
            InvalidArgument: the value is wrong; the message names the annotation.
        """
        text = pod.config.annotations.get(self.name)
        if text is None:
            return self.default
        try:
            return self.kind.parse(text)
        except ValueError as error:
            shown = not self.secret or isinstance(error, UnquotedError)
            problem = str(error) if shown else f"is no valid {self.kind.name}"
            raise InvalidArgument(f"annotation {self.name}: {problem}") from None


@frozen(kw_only=True, field_transformer=typed)
class Settings:
    """The manager's settings after all layers were merged; read with an Option as the key."""

    _values: Mapping[str, Any] = field(repr=False)
    sections: Mapping[str, Any] = field(factory=dict, repr=False)
    """Mappings of the configuration file that are no options, such as `handlers`."""

    def __getitem__(self, option: Option[T]) -> T:
        """The value of an option.

        Raises:
            KeyError: nobody declared the option.
        """
        value: T = self._values[option.field]
        return value
