#!/usr/bin/env python3
"""Run pytest; what failed in a few files runs once more, alone, and is named if it passes then.

Guests without KVM boot beside other tests on few cores: a deadline that holds a thousand times is
missed once. Such a failure is a defect of the test and has to be mended, but says nothing of the
change that is tested. A failure that stays, or is in many files, ends the run as pytest's would.

    hack/run_tests.py [ARGUMENTS OF PYTEST]
"""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS_FAILED = 1
"""pytest's exit code; others mean that it could not run them."""
FILES = 3
"""With failures in more files than these, something is broken and no second run is needed."""
ALONE = ["--last-failed", "--last-failed-no-failures=none", "-n", "0"]


def failed_tests(cache: Path) -> list[str]:
    """The ids of the tests that failed in the run that wrote this cache."""
    record = cache / "v/cache/lastfailed"
    return sorted(json.loads(record.read_text())) if record.exists() else []


def run(command: list[str]) -> int:
    """Run a command, which tidies up at a signal and is waited for; its exit code."""
    with subprocess.Popen(command) as process:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: process.send_signal(number))
        # A terminal sends this to both. Where it is ignored, in the background, it stays so.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda *_: None)
        return process.wait()


def main(arguments: list[str]) -> int:
    """Run the tests that pytest's arguments name; its exit code, 0 if all failures were flaky."""
    with tempfile.TemporaryDirectory() as cache:
        pytest = [sys.executable, "-m", "pytest", "-o", f"cache_dir={cache}", *arguments]
        code = run(pytest)
        failed = failed_tests(Path(cache))
        if code != TESTS_FAILED or not failed:
            return code
        files = {test.partition("::")[0] for test in failed}
        if len(files) > FILES:
            print(f"\nFailures in {len(files)} files: they do not run again.", flush=True)
            return code
        print(f"\n{len(failed)} failed; they run once more, alone.", flush=True)
        code = run([*pytest, *ALONE])
        if code == 0:
            print("\nFlaky, as they passed alone; find out why, and mend them:")
            print("\n".join(f"  {test}" for test in failed), flush=True)
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
