"""hack/assemble_changelog.py: fragments become a release's section."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location(
    "assemble_changelog", Path(__file__).parents[1] / "hack" / "assemble_changelog.py"
)
assert SPEC is not None
assert SPEC.loader is not None
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)


def test_fragments_go_to_the_top_of_their_release_and_older_ones_stay() -> None:
    first = MODULE.assemble("", {"a.fix.md": "One\ntwo.\n"}, "2.0.0", "2026-12-02")
    assert first.endswith("## 2.0.0 (2026-12-02)\n\n### Mended\n\n- One\n  two.\n")
    more = {"b.feature.md": "New.\n", "c.fix.md": "Three.\n"}
    same = MODULE.assemble(first, more, "2.0.0", "2026-12-03")
    assert same.partition("## ")[2] == (
        "2.0.0 (2026-12-03)\n\n### New\n\n- New.\n\n### Mended\n\n- Three.\n- One\n  two.\n"
    )
    later = MODULE.assemble(same, {"d.fix.md": "Four.\n"}, "2.0.1", "2026-12-04")
    assert later.index("## 2.0.1 (2026-12-04)") < later.index("## 2.0.0 (2026-12-03)")
    assert later.endswith("- Three.\n- One\n  two.\n")
