"""The manager dies at every line of every change to the store, and finds it whole."""

import subprocess
import sys
from pathlib import Path

import pytest

VICTIM = r'''
import os, sys
from pathlib import Path

from tests.images.conftest import SMALL, put
from tests.images.disks import raw_disk, recognize
from tests.images.test_store import files
from virtlet.images import image_store, layout
from virtlet.model.reference import parse_reference
from virtlet.images.image_store import ImageStore
from virtlet.host import files as host_files

WATCHED = {module.__file__ for module in (layout, image_store, host_files)}


def open_store(root):
    opened = ImageStore(layout.Layout(root, 0), in_use=set, recognize=recognize, limits=SMALL)
    opened.collect()
    return opened


def dies(change, root, at):
    """Run a change in a child that ends at the at-th line; returns whether it got that far."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    opened = open_store(root)
    left = at

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os._exit(9)
        return trace

    sys.settrace(trace)
    change(opened)
    os._exit(0)


def check(opened, may_be):
    """Every name leads to a whole image, and nothing else is there."""
    labels = {"old": raw_disk("old"), "new": raw_disk("new")}
    found = {n.removesuffix(":latest"): i for i in opened.list() for n in i.names}
    state = {}
    for name, image in found.items():
        content = image.path.read_bytes()
        state[name] = next(label for label, disk in labels.items() if disk == content)
    assert state in may_be, state
    data = {f"data/{image.id[7:]}" for image in opened.list()}
    kept = data | {f"{path}.json" for path in data} | {f"links/{name}" for name in found}
    assert set(files(opened)) == kept, files(opened)


before, change, *may_be = {
    "moved": ({"a": "old"}, lambda s: put(s, "a", "new"), {"a": "old"}, {"a": "new"}),
    "again": ({"a": "old"}, lambda s: put(s, "a", "old"), {"a": "old"}),
    "second name": (
        {"a": "old"}, lambda s: put(s, "b", "old"), {"a": "old"}, {"a": "old", "b": "old"}
    ),
    "removed": ({"a": "old"}, lambda s: s.remove(parse_reference("a")), {"a": "old"}, {}),
}[sys.argv[1]]
root = Path(sys.argv[2])
points = 0
alive = True
while alive:
    points += 1
    opened = open_store(root)
    for image in opened.list():
        opened.remove(parse_reference(image.id))
    for name, label in before.items():
        put(opened, name, label)
    alive = dies(change, root, points)
    check(open_store(root), may_be if alive else [may_be[-1]])
    again = open_store(root)
    change(again)
    check(again, [may_be[-1]])
print(points)
'''


@pytest.mark.parametrize("change", ["moved", "again", "second name", "removed"])
def test_a_death_at_any_line_leaves_old_or_new_and_nothing_else(
    tmp_path: Path, change: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, change, str(tmp_path / "images")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
