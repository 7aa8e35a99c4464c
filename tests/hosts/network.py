"""A network of hosts on this machine: a namespace for each, joined by a bridge in one more; and what may go wrong.

Of this machine's own network it touches nothing: its addresses are known in those namespaces alone. They are kept by
processes that end when this one does, however it ends; nothing is left then. The hosts share the machine's files.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from typing import Self

from tests.waiting import until_sync

NEEDS = (
    "Hosts in network namespaces need root (in a container: a privileged one), and the packages iproute2, util-linux."
)

#: seconds; the lossy link forwards in the first part of each round and drops what comes in the second
FORWARDS, DROPS = 0.3, 0.2


class Namespace:
    """A network of its own, with nothing in it but its loopback interface."""

    def __init__(self) -> None:
        if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in ("ip", "bridge", "ss", "nsenter")):
            raise AssertionError(NEEDS)
        # It ends with its input, and that with this process.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self.pid = self._holder.pid
        self._name = until_sync(self._other, what="a network namespace")
        #: what a command begins with to run in there, as the same process
        self.within = ("nsenter", f"--net=/proc/{self.pid}/ns/net")
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str) -> str:
        """Its output; AssertionError with all of it when it fails."""
        done = subprocess.run([*self.within, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def processes(self) -> list[int]:
        """The pids of all that runs in it, beside what keeps it."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/ns/net") == self._name and int(pid) != self.pid:
                    found.append(int(pid))
        return found

    def close(self) -> None:
        """Kills what still runs in it."""

        def empty() -> bool:
            left = self.processes()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        try:
            until_sync(empty, 60, "the processes of a namespace to end")
        finally:
            self._holder.kill()
            self._holder.communicate()

    def _other(self) -> str:
        """The kernel's name for it; "" while its keeper is still in this process's own."""
        assert self._holder.poll() is None, f"there is no namespace, see above. {NEEDS}"
        name = os.readlink(f"/proc/{self.pid}/ns/net")
        return name if name != os.readlink("/proc/self/ns/net") else ""


class Host(Namespace):
    """Linked to the network's switch, as `address`; the switch calls the link `port`."""

    def __init__(self, address: str, port: str) -> None:
        super().__init__()
        self.address = address
        self.port = port


class Network:
    """A switch and its hosts. A context manager: at its end everything in it is killed and gone."""

    def __init__(self) -> None:
        self._all = contextlib.ExitStack()
        self._hosts: list[Host] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._switch = Namespace()
            stack.callback(self._switch.close)
            self._switch.run("ip", "link", "add", "switch", "type", "bridge", "stp_state", "0", "forward_delay", "0")
            self._switch.run("ip", "link", "set", "switch", "up")
            self._all = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._all.close()

    def host(self) -> Host:
        number = len(self._hosts) + 1
        host = Host(f"10.77.0.{number}", f"port{number}")
        self._all.callback(host.close)
        self._switch.run("ip", "link", "add", host.port, "type", "veth", "peer", "eth0", "netns", str(host.pid))
        self._switch.run("ip", "link", "set", host.port, "master", "switch", "up")
        host.run("ip", "link", "set", "eth0", "address", _hardware(number), "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        # So that a cut is silence, and nobody is told by the lack of an answer to ARP that there is no route.
        for known, other in enumerate(self._hosts, 1):
            host.run("ip", "neighbour", "add", other.address, "lladdr", _hardware(known), "dev", "eth0")
            other.run("ip", "neighbour", "add", host.address, "lladdr", _hardware(number), "dev", "eth0")
        self._hosts.append(host)
        return host

    def cut(self, host: Host) -> None:
        """What it sends and what is sent to it is dropped without a word; its own side of the link stays up."""
        self._forward(host, False)

    def heal(self, host: Host) -> None:
        self._forward(host, True)

    def reset(self, host: Host) -> None:
        """Its TCP connections to others break, at both ends."""
        host.run("ss", "--kill", "--tcp", "--no-header", "src", host.address)

    @contextlib.asynccontextmanager
    async def lossy(self, host: Host) -> AsyncIterator[None]:
        """Its link drops what comes in two fifths of the time, twice a second."""

        async def lose() -> None:
            while True:
                self._forward(host, False)
                await asyncio.sleep(DROPS)
                self._forward(host, True)
                await asyncio.sleep(FORWARDS)

        losing = asyncio.create_task(lose())
        try:
            yield
        finally:
            losing.cancel()
            await asyncio.wait([losing])
            self.heal(host)

    def _forward(self, host: Host, forwards: bool) -> None:
        self._switch.run("bridge", "link", "set", "dev", host.port, "state", "3" if forwards else "0")


def _hardware(number: int) -> str:
    """The MAC address of that host, one that is administered locally."""
    return f"02:00:00:00:00:{number:02x}"
