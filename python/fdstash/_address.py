"""Where the daemon's socket is."""

from __future__ import annotations

import os

INTERFACE = "org.fdstash.Stash"


def default_socket() -> str:
    """Tells which socket `connect` uses: `$FDSTASH_SOCKET`; else, for root,
    `/run/fdstash/org.fdstash.Stash`; else `fdstash/org.fdstash.Stash` below `$XDG_RUNTIME_DIR`, and
    the system's where the user has none of their own.
    """
    if socket := os.environ.get("FDSTASH_SOCKET"):
        return socket
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.geteuid() != 0 and os.path.exists(own := _below(runtime)):
        return own
    return _below("/run")


def _below(directory: str) -> str:
    return os.path.join(directory, "fdstash", INTERFACE)
