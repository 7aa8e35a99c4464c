"""The process that forks: a small Python beside the daemon, run by its path, that makes the daemon's children.

Only clone3(2) starts a program in a cgroup from its first instruction; joining later waits for an RCU grace period, 10
to 13 ms. What is cloned is a copy of the caller, so the caller is not the daemon, which has threads and much memory,
but this: one thread, one loop, and next to nothing imported. The children are the daemon's (CLONE_PARENT), which reaps
them.

It stands alone: nothing of branchd is imported here. The daemon's side, spawning.py, imports what both must agree on.
It ends with the daemon, by PDEATHSIG and at the end of the socket; nothing that it started ends with it.
"""

import ctypes
import marshal
import os
import resource
import select
import struct
import sys
import time

# `socket` would bring `enum` and `selectors`, 1 MB: a quarter of what this process has to itself.
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC, SCM_RIGHTS, SOL_SOCKET, socket

#: A request: the length of what follows, and then marshal's bytes of an Order. With its first byte come the
#: descriptors: stdout, stderr, the cgroup's folder where there is one, and the gate where it waits for one.
LENGTH = struct.Struct("=I")

#: what is written to a gate to let its program be executed: a byte for the clone, and one for the clone that may take
#: the place of one that was killed. A gate that ends without is not to be passed.
PASS = b"gg"

#: program, argv, environment, directory, umask (-1: the daemon's), who (uid, gid, supplementary groups; None: as the
#: daemon), limits (number, soft, hard), niceness and oom_score_adj (each None: the daemon's), what it reads from stdin,
#: whether it waits for a gate before it executes the program
Order = tuple[
    bytes, list[bytes], dict[bytes, bytes], bytes, int, "tuple[int, int, list[int]] | None",
    "list[tuple[int, int, int]]", "int | None", "int | None", bytes, bool,
]  # fmt: skip

#: An answer, as soon as a program has begun or failed: which request since the start, from 0; pid, or 0 where there is
#: none; errno, or 0; which of STEPS failed; 1 where it is in its cgroup for sure. With it comes the pidfd, unless it
#: failed.
ANSWER = struct.Struct("=IIIII")

#: what a start consists of, for the words of a failure
STEPS = ("clone", "session", "user", "directory", "output", "exec")

#: seconds within which a program must have begun: its folder may lie on a file server that does not answer. Half of it
#: may go by at the gate.
PATIENCE = 30.0

#: what a clone tells on its pipe: that it is about to execute its program; which step failed, and its errno
_READY = b"ready"
_FAILURE = struct.Struct("=II")

_SYS_CLONE3, _SYS_PIDFD_SEND_SIGNAL = 435, 424  # on every architecture
#: for want of clone3: of those whose number and order of arguments are known here
_SYS_CLONE = {("x86_64", 8): 56, ("aarch64", 8): 220, ("riscv64", 8): 220}.get(
    (os.uname().machine, struct.calcsize("P"))
)
_CLONE_PIDFD, _CLONE_PARENT, _CLONE_INTO_CGROUP = 0x1000, 0x8000, 0x200000000
_PR_SET_PDEATHSIG = 1
_SIGKILL, _SIGPIPE, _SIGXFSZ, _SIG_SETMASK = 9, 13, 25, 2
_EPERM, _EMFILE, _ENOSYS, _ETIMEDOUT, _ECANCELED = 1, 24, 38, 110, 125

# PyDLL keeps the interpreter's lock over a call: a clone would wait for ever for one that nobody is left to give back.
_LIBC = ctypes.PyDLL(None, use_errno=True)


class _CloneArguments(ctypes.Structure):
    """struct clone_args of linux/sched.h. Made once: each page that is written to between two clones is copied."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls"),
            *("set_tid", "set_tid_size", "cgroup"),
        )
    )


class _Begun:
    """A clone that has yet to execute its program."""

    def __init__(self, number: int, order: Order, descriptors: list[int], pid: int, pidfd: int, joined: bool) -> None:
        self.number = number
        self.order = order
        self.descriptors = descriptors  #: ours, as they came
        self.pid = pid
        self.pidfd = pidfd
        self.joined = joined
        self.deadline = time.monotonic() + PATIENCE


class Spawner:
    def __init__(self, line: socket, daemon: int) -> None:
        self._line = line
        self._daemon = daemon
        self._requests = 0
        self._begun: dict[int, _Begun] = {}  # by the descriptor on which a clone tells of a failure, or executes
        self._clone3 = True
        self._pidfd = ctypes.c_int(-1)
        self._arguments = _CloneArguments(pidfd=ctypes.addressof(self._pidfd))
        self._call = _SYS_CLONE3, ctypes.byref(self._arguments), ctypes.sizeof(self._arguments)
        self._poll = select.poll()
        self._poll.register(line, select.POLLIN)

    def serve(self) -> None:
        """Until the daemon hangs up."""
        while True:
            for descriptor, _ in self._poll.poll(1000 if self._begun else None):
                if descriptor in self._begun:
                    self._settle(descriptor)
                elif not self._take():
                    return
            self._give_up()

    def _take(self) -> bool:
        """One request; False where there is none any more."""
        head, ancillary, flags, _ = self._line.recvmsg(LENGTH.size, CMSG_SPACE(4 * 4), MSG_CMSG_CLOEXEC)
        descriptors: list[int] = []
        for _, kind, data in ancillary:
            if kind == SCM_RIGHTS:
                descriptors += struct.unpack(f"={len(data) // 4}i", data)
        if len(head) < LENGTH.size or not (order := self._read(LENGTH.unpack(head)[0])):
            return False
        if os.getppid() != self._daemon:  # whoever comes after it looks for what runs, and must not miss this one
            return False
        number, self._requests = self._requests, self._requests + 1
        # Descriptors do not arrive where our table is full, and for no other reason.
        if flags & MSG_CTRUNC or len(descriptors) < 2:
            self._refuse(number, descriptors, _EMFILE)
        else:
            self._begin(number, marshal.loads(order), descriptors, self._clone3)  # noqa: S302  the daemon's own words
        return True

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._line.recv(size)
            if not part:
                return b""
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _begin(self, number: int, order: Order, descriptors: list[int], into: bool) -> None:
        """`into`: in its cgroup from the first instruction on, if that can be; else it joins."""
        try:
            failing, failed = os.pipe()
        except OSError as error:
            self._refuse(number, descriptors, error.errno or 0)
            return
        try:
            pid, pidfd, joined = self._clone(_cgroup(order, descriptors), into)
        except OSError as error:
            os.close(failing)
            os.close(failed)
            self._refuse(number, descriptors, error.errno or 0)
            return
        if pid == 0:
            _become(order, self._daemon, self._line, descriptors, joined, failed)
        os.close(failed)
        self._begun[failing] = _Begun(number, order, descriptors, pid, pidfd, joined)
        self._poll.register(failing, 0)  # its end alone is of interest, which poll(2) always tells

    def _refuse(self, number: int, descriptors: list[int], errno: int) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        self._line.send(ANSWER.pack(number, 0, errno, 0, 0))

    def _clone(self, cgroup: int, into: bool) -> tuple[int, int, bool]:
        """As fork(2): pid, pidfd, and whether it is in the cgroup already, or that was not to be had."""
        if into:
            try:
                self._arguments.flags = _CLONE_PARENT | _CLONE_PIDFD | (_CLONE_INTO_CGROUP if cgroup >= 0 else 0)
                self._arguments.cgroup = max(cgroup, 0)
                return _checked(_LIBC.syscall(*self._call)), self._pidfd.value, True
            except OSError as error:
                # A container's filter of system calls knows clone and not clone3; or nobody may begin in that cgroup.
                self._clone3 = error.errno not in (_EPERM, _ENOSYS)
                if cgroup < 0 and self._clone3:
                    raise
        if _SYS_CLONE is None:
            raise OSError(_ENOSYS, os.strerror(_ENOSYS))
        pid = _LIBC.syscall(_SYS_CLONE, _CLONE_PARENT | _CLONE_PIDFD, None, ctypes.byref(self._pidfd), None, None)
        return _checked(pid), self._pidfd.value, False

    def _settle(self, descriptor: int) -> None:
        """A clone has failed, or executed its program and so closed its end."""
        said = os.read(descriptor, len(_READY) + _FAILURE.size)
        if said == _READY:
            self._answer(descriptor, 0, 0)
        elif said:
            step, errno = _FAILURE.unpack(said.removeprefix(_READY))
            self._answer(descriptor, errno, step)
        else:
            self._died(descriptor)

    def _died(self, descriptor: int) -> None:
        """A clone was killed before it came to its program.

        Linux from 6.14 on kills what is cloned into a cgroup by a process of another one, of which not as often all was
        killed at once (cgroup.kill). Joining is spared that.
        """
        begun = self._begun[descriptor]
        if not begun.joined or _cgroup(begun.order, begun.descriptors) < 0:
            self._answer(descriptor, _ECANCELED, 0)
            return
        self._forget(descriptor)
        os.close(begun.pidfd)
        self._begin(begun.number, begun.order, begun.descriptors, False)

    def _give_up(self) -> None:
        now = time.monotonic()
        for descriptor in [one for one, begun in self._begun.items() if begun.deadline < now]:
            _LIBC.syscall(_SYS_PIDFD_SEND_SIGNAL, self._begun[descriptor].pidfd, _SIGKILL, None, 0)
            self._answer(descriptor, _ETIMEDOUT, len(STEPS) - 1)

    def _answer(self, descriptor: int, errno: int, step: int) -> None:
        begun = self._forget(descriptor)
        for each in begun.descriptors:
            os.close(each)
        rights = [] if errno else [(SOL_SOCKET, SCM_RIGHTS, struct.pack("=i", begun.pidfd))]
        self._line.sendmsg([ANSWER.pack(begun.number, begun.pid, errno, step, begun.joined)], rights)
        os.close(begun.pidfd)

    def _forget(self, descriptor: int) -> _Begun:
        self._poll.unregister(descriptor)
        os.close(descriptor)
        return self._begun.pop(descriptor)


def _checked(pid: int) -> int:
    if pid < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return pid


def _cgroup(order: Order, descriptors: list[int]) -> int:
    """The descriptor of its folder; -1: there is none."""
    return descriptors[2] if len(descriptors) > 2 + order[-1] else -1


def _become(order: Order, daemon: int, line: socket, descriptors: list[int], joined: bool, failed: int) -> None:
    """In the clone: executes the program, or tells why not. Never returns. Everything else closes on exec."""
    program, argv, env, directory, umask, who, limits, nice, oom_score_adj, stdin, waits = order
    step = 1
    try:
        os.setsid()
        if not joined and (cgroup := _cgroup(order, descriptors)) >= 0:
            _write("cgroup.procs", b"0", cgroup)
        # What is not granted here is left as it is: branchd tells of it beforehand.
        for number, soft, hard in limits:
            _limit(number, soft, hard)
        if nice is not None:
            _renice(nice)
        if oom_score_adj is not None:
            _write("/proc/self/oom_score_adj", b"%d" % oom_score_adj)
        if umask >= 0:
            os.umask(umask)
        step = 2
        if who is not None:
            uid, gid, groups = who
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        step = 3
        os.chdir(directory)
        step = 4
        if stdin:  # else it stays ours, which is /dev/null
            os.dup2(_readable(stdin), 0)
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[1], 2)
        step = 5
        if waits:
            line.close()  # else the daemon would not see that its spawner is lost
            if not os.read(descriptors[-1], 1):
                raise OSError(_ECANCELED, "")
        os.write(failed, _READY)
        if os.getppid() == daemon:  # else nobody would know of it
            os.execve(program, argv, env)  # noqa: S606  what this is for
    except OSError as error:
        os.write(failed, _FAILURE.pack(step, error.errno or 0))
    finally:
        os._exit(127)


def _limit(number: int, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(number, (soft, hard))
    except (OSError, ValueError):  # `resource` makes a ValueError of EPERM
        return


def _renice(nice: int) -> None:
    try:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError:
        return


def _readable(text: bytes) -> int:
    """A descriptor of it."""
    file = os.memfd_create("stdin")
    os.write(file, text)
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _write(path: str, text: bytes, folder: int | None = None) -> None:
    try:
        os.write(os.open(path, os.O_WRONLY, dir_fd=folder), text)
    except OSError:
        return


def main(line: int, daemon: int) -> None:
    """`line` is the descriptor of the socket."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != daemon:
        return
    # What Python ignores for its own sake, a program must not: dispositions and the mask outlive an exec.
    _LIBC.signal(_SIGPIPE, None)
    _LIBC.signal(_SIGXFSZ, None)
    _LIBC.sigprocmask(_SIG_SETMASK, bytes(128), None)
    os.set_inheritable(line, False)
    try:
        Spawner(socket(fileno=line), daemon).serve()
    except ConnectionError:  # it has hung up in the middle of something
        return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
