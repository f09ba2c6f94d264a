"""Regular expressions over image names, in linear time.

The original's expressions are Go's, whose library is RE2; RE2 itself runs them here. It never
backtracks, so that no expression, however written, makes a name take long.
"""

import re
from typing import Any

from attrs import frozen

_REFERENCE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")
_MEMORY = 8 << 20


@frozen
class Rule:
    """A compiled expression and the address it leads to."""

    _compiled: Any
    _url: str

    def apply(self, name: str) -> str | None:
        """The address of a name; None when the expression is not found in it."""
        match = self._compiled.search(name)
        if match is None:
            return None

        def value(reference: re.Match[str]) -> str:
            group = reference[1] or reference[2]
            if group is None:
                return "$"
            return match[int(group) if group.isdigit() else group] or ""

        return _REFERENCE.sub(value, self._url)


def compile_rule(regexp: str, url: str) -> Rule:
    """Compile an expression, and check that the address refers to sub-matches it has.

    Args:
        regexp: in RE2's syntax; found anywhere in the name, unless it has ^ and $.
        url: with `$1`, `${1}` or `${name}` for sub-matches and `$$` for a dollar.

    Raises:
        ValueError: what is wrong with either.
    """
    # Not at the top: most nodes have no expressions, and start and stay smaller without it.
    import re2  # type: ignore[import-untyped]

    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MEMORY
    try:
        compiled = re2.compile(regexp, options)
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"no valid regular expression: {text}") from None
    for reference in _REFERENCE.finditer(url):
        group = reference[1] or reference[2]
        if group is None:
            continue
        known = int(group) <= compiled.groups if group.isdigit() else group in compiled.groupindex
        if not known:
            raise ValueError(
                f"the url refers to ${group}, which the regexp does not have; "
                "write ${1} where letters, digits or _ follow, and $$ for a dollar"
            )
    return Rule(compiled, url)
