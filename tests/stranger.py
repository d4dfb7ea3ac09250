"""A client of org.fdstash.Stash, written from the interface's text alone.

Varlink is JSON messages that end with a NUL; descriptors travel beside them. Usage: stranger.py SOCKET
"""

import fcntl
import json
import os
import socket
import struct
import sys
import tempfile
import time


class Refused(Exception):
    def __init__(self, error, parameters):
        super().__init__(error, parameters)
        self.error = error.rpartition(".")[2]
        self.parameters = parameters


class Stash:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.bytes = b""
        self.fds = []

    def send(self, method, parameters, fds=(), **flags):
        call = {"method": "org.fdstash.Stash." + method, "parameters": parameters, **flags}
        message = json.dumps(call).encode() + b"\0"
        sent = socket.send_fds(self.socket, [message], list(fds)) if fds else 0
        self.socket.sendall(message[sent:])

    def receive(self):
        while b"\0" not in self.bytes:
            data, fds, _, _ = socket.recv_fds(self.socket, 65536, 253)
            assert data, "the daemon has hung up"
            self.bytes += data
            self.fds += fds
        message, _, self.bytes = self.bytes.partition(b"\0")
        reply = json.loads(message)
        if "error" in reply:
            raise Refused(reply["error"], reply["parameters"])
        return reply

    def call(self, method, parameters={}, fds=()):
        self.send(method, parameters, fds)
        return self.receive()["parameters"]

    def give(self, fds, **more):
        """Gives descriptors by name, each with the same options; 'exclusive' is the call's."""
        exclusive = {"exclusive": more.pop("exclusive")} if "exclusive" in more else {}
        entries = [{"name": name, "fileDescriptor": at, **more} for at, name in enumerate(fds)]
        return self.call("Give", {"entries": entries, **exclusive}, fds.values())["replaced"]

    def handed(self, method, parameters):
        """What a Take or a Reopen hands out: descriptors by name."""
        entries = self.call(method, parameters)["entries"]
        fds = [self.fds.pop(0) for _ in entries]
        return {entry["name"]: fds[entry["fileDescriptor"]] for entry in entries}

    def list(self, pattern=None):
        self.send("List", {} if pattern is None else {"pattern": pattern}, more=True)
        entries = []
        while True:
            reply = self.receive()
            entries += reply["parameters"]["entries"]
            if not reply.get("continues"):
                return entries


def refused(error, act, **parameters):
    try:
        act()
    except Refused as refusal:
        assert refusal.error == error, refusal
        for name, value in parameters.items():
            assert refusal.parameters[name] == value, refusal
        return refusal.parameters
    raise AssertionError(f"not refused with {error}")


def identity(fd):
    stat = os.fstat(fd)
    return (stat.st_dev, stat.st_ino)


def lock(fd):
    """Takes an OFD lock over everything, and tells whether that could be."""
    flock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, 37, flock)  # F_OFD_SETLK
        return True
    except BlockingIOError:
        return False


def main(path, folder):
    stash, other = Stash(path), Stash(path)
    disk = os.open(folder + "/disk", os.O_RDWR | os.O_CREAT)
    os.write(disk, b"0123456789")
    log = os.open(folder + "/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    watch = Stash(path)
    watch.send("Watch", {"pattern": "disk*"}, more=True)
    assert watch.receive() == {"parameters": {}, "continues": True}

    # Give and List.
    assert stash.give({"disk": disk, "log": log}, labels={"vm": "7"}) == []
    assert stash.give({"log": log}) == ["log"]
    refused("AlreadyExists", lambda: stash.give({"log": log}, exclusive=True), name="log")
    entry, log_entry = stash.list()
    assert (entry["name"], entry["kind"], entry["access"]) == ("disk", "regular", "read_write")
    assert (entry["device"], entry["inode"]) == identity(disk)
    assert entry["flags"] == [] and log_entry["flags"] == ["append"]
    assert entry["labels"] == {"vm": "7"} and entry["mayReopen"] == "read_write"
    assert entry["giver"] == {"uid": os.getuid(), "gid": os.getgid(), "pid": os.getpid()}
    assert abs(entry["givenAtUSec"] / 1e6 - time.time()) < 60
    assert entry["target"] == os.path.realpath(folder + "/disk")
    assert [it["name"] for it in stash.list("l?g")] == ["log"] and stash.list("none") == []

    # Copies share all, fresh ones nothing.
    copy = stash.handed("Take", {"names": ["disk"], "copy": True})["disk"]
    fresh = stash.handed("Take", {"names": ["disk"], "copy": True, "fresh": True})["disk"]
    os.lseek(disk, 5, os.SEEK_SET)
    assert identity(copy) == identity(fresh) == identity(disk)
    assert os.lseek(copy, 0, os.SEEK_CUR) == 5 and os.lseek(fresh, 0, os.SEEK_CUR) == 0
    assert lock(disk) and lock(copy) and not lock(fresh)
    fcntl.fcntl(disk, fcntl.F_SETFL, os.O_APPEND)
    assert stash.list("disk")[0]["drifted"] == ["append"]
    assert not fcntl.fcntl(fresh, fcntl.F_GETFL) & os.O_APPEND
    fcntl.fcntl(disk, fcntl.F_SETFL, 0)

    # Reopen.
    again = stash.handed("Reopen", {"entries": [{"name": "disk", "access": "read", "sync": True}]})
    flags = fcntl.fcntl(again["disk"], fcntl.F_GETFL)
    assert flags & os.O_ACCMODE == os.O_RDONLY and flags & os.O_SYNC == os.O_SYNC
    assert os.read(again["disk"], 10) == b"0123456789"
    entry = stash.list("disk")[0]
    assert (entry["access"], entry["flags"]) == ("read", ["sync"])
    pair = socket.socketpair()
    stash.give({"socket": pair[0].fileno()})
    both = {"entries": [{"name": "disk", "sync": False}, {"name": "socket"}]}
    failed = refused("ReopenFailed", lambda: stash.call("Reopen", both), name="socket")
    assert (failed["errno"], failed["errnoName"]) == (6, "ENXIO")
    assert stash.list("disk")[0] == entry
    wider = {"entries": [{"name": "log", "access": "read"}]}
    refused("AccessDenied", lambda: stash.call("Reopen", wider), name="log", verb="reopen")

    # Transactions.
    stash.call("Begin")
    refused("TransactionState", lambda: stash.call("Begin"))
    stash.call("Close", {"names": ["log"]})
    taken = stash.handed("Take", {"names": ["socket"]})["socket"]
    held = refused("Busy", lambda: other.call("Take", {"names": ["socket"]}), name="socket")
    assert held["heldBy"]["pid"] == os.getpid()
    assert [it["name"] for it in other.list()] == ["disk", "log", "socket"]
    stash.call("Rollback")
    assert [it["name"] for it in other.list()] == ["disk", "log", "socket"]
    stash.call("Begin")
    stash.call("Close", {"names": ["log"]})
    stash.call("Commit")
    refused("TransactionState", lambda: stash.call("Commit"))
    assert [it["name"] for it in other.list()] == ["disk", "socket"]
    os.write(taken, b"through")
    assert pair[1].recv(7) == b"through"

    # Waiting, and what ends by itself.
    refused("NotFound", lambda: other.call("Take", {"names": ["new"], "timeoutUSec": 1000}))
    other.send("Take", {"names": ["new"], "timeoutUSec": 10_000_000})
    stash.give({"new": disk}, expireUSec=10_000_000)
    assert other.receive()["parameters"]["entries"] == [{"name": "new", "fileDescriptor": 0}]
    assert identity(other.fds.pop()) == identity(disk)
    stash.give({"disk-brief": disk}, expireUSec=1000)
    ends = socket.socketpair()
    stash.give({"disk-hung": ends[0].fileno()}, closeOnHangup=True)
    for end in ends:
        end.close()
    passing = Stash(path)
    passing.give({"disk-passing": disk}, ephemeral=True)
    passing.socket.close()
    told = set()
    while not {("disk-brief", "expired"), ("disk-hung", "hung_up"), ("disk-passing", "closed")} <= told:
        change = watch.receive()["parameters"]
        told.add((change["entry"]["name"], change["change"]))
    assert {("disk", "given"), ("disk", "reopened")} <= told

    # The end.
    figures = stash.call("GetStatistics")
    assert figures["entries"] == 2 and figures["maxEntries"] > 2 and figures["keeper"]
    gone = figures["taken"] + figures["closed"] + figures["expired"]
    assert figures["given"] == figures["entries"] + gone
    stash.call("Close", {"names": ["disk", "socket"]})
    assert stash.list() == []
    refused("InvalidName", lambda: stash.call("Close", {"names": ["a:b"]}), name="a:b")
    refused("InvalidParameter", lambda: stash.call("Close", {"name": "a"}))
    refused("MethodNotFound", lambda: stash.call("Steal"))
    refused("ExpectedMore", lambda: stash.call("Watch"))
    print("all is as the interface says")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(sys.argv[1], folder)
