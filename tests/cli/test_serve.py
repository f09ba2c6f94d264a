"""What `virtlet serve` tells gRPC before it imports the manager."""

import os
import subprocess
import sys

from virtlet.cli.serve import GRPC_EXPERIMENTS

_SERVE = """
import os, sys

class Watch:
    def find_spec(self, name, path, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS"))

sys.meta_path.insert(0, Watch())
sys.argv = ["virtlet", "serve", "--config", "no-such-file"]
from virtlet.cli.main import main
main()
"""
_GRPC_SERVES = """
import grpc
from concurrent.futures import ThreadPoolExecutor
server = grpc.server(ThreadPoolExecutor(1))
server.add_insecure_port("127.0.0.1:0")
server.start()
server.stop(None)
"""


def _python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**{k: v for k, v in os.environ.items() if k != "GRPC_EXPERIMENTS"}, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_grpc_knows_every_experiment_that_is_turned_off() -> None:
    served = _python(_GRPC_SERVES, GRPC_EXPERIMENTS=GRPC_EXPERIMENTS)
    assert (served.returncode, served.stderr) == (0, "")
    unknown = _python(_GRPC_SERVES, GRPC_EXPERIMENTS="-no_such_thing")
    assert "Unknown experiment: no_such_thing" in unknown.stderr


def test_grpc_finds_it_when_the_manager_imports_it() -> None:
    assert _python(_SERVE).stdout == f"{GRPC_EXPERIMENTS}\n"


def test_what_the_environment_says_is_kept() -> None:
    assert _python(_SERVE, GRPC_EXPERIMENTS="tcp_rcv_lowat").stdout == "tcp_rcv_lowat\n"


def test_the_originals_flag_for_the_logs_level_is_understood() -> None:
    for number, says in (("2", "'x' is none of"), ("9", "'9' is none of 'error', 'warning'")):
        code = _SERVE.replace(
            '"--config", "no-such-file"', f'"--v", "{number}", "--log-format", "x"'
        )
        assert says in _python(code).stderr
