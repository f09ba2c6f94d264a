"""The `virtlet` command."""

import os

# libvirt's embedded driver forks in C. gRPC's own fork handlers run in such a child and abort it;
# gRPC reads this when it is first used, so it has to be said before anything imports it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
