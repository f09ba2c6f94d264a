"""Giving back what only the start needed."""

import subprocess
import sys

_LIFE = """
import hashlib, re, sqlite3
from pathlib import Path
import grpc.aio
from virtlet.core import process_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

process_memory.share_heap()
wanted = hashlib.sha256(b"virtlet").hexdigest()
before = resident()
process_memory.settle()
after = resident()
assert hashlib.sha256(b"virtlet").hexdigest() == wanted
assert sqlite3.connect(":memory:").execute("SELECT 6 * 7").fetchone() == (42,)
print(before, after)
"""


def test_a_settled_process_is_smaller_and_works_as_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIFE], check=True, capture_output=True, text=True, timeout=60
    )
    before, after = map(int, done.stdout.split())
    assert after < 0.8 * before
