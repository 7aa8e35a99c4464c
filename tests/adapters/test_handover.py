"""What one image of a process leaves to the next, received by a process that really was replaced, or started so."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from branchd.adapters.handover import INHERITED, receive, rehearse
from branchd.core.errors import Fatal

#: replaces itself once, with a listening socket and a descriptor, and tells what came of them
PROGRAM = """
import json, os, socket, sys
from branchd.adapters.handover import Handover, Listening, become, receive
given = receive(os.environ)
if given.again:
    [given_on] = given.sockets
    listener = given_on.socket
    print(json.dumps({
        "pid": os.getpid(), "name": listener.getsockname(), "ours": given_on.ours, "inode": given_on.inode,
        "lock": os.readlink(f"/proc/self/fd/{given.lock}"),
        "left": [name for name in os.environ if name.startswith(("BRANCHD_INHERITED", "LISTEN_"))],
        "inheritable": [os.get_inheritable(given.lock), listener.get_inheritable()],
    }))
else:
    print(os.getpid(), flush=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1] + "/socket")
    listener.listen()
    lock = os.open(sys.argv[1] + "/lock", os.O_CREAT | os.O_RDWR)
    become(Handover((Listening(listener, True, 7),), lock), os.environ)
"""


def test_the_next_image_is_the_same_process_with_the_same_sockets(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LISTEN_PID": "1", "LISTEN_FDS": "9"},
    )  # fmt: skip
    before, after = done.stdout.splitlines()
    assert json.loads(after) == {
        "pid": int(before), "name": f"{tmp_path}/socket", "ours": True, "inode": 7, "lock": f"{tmp_path}/lock",
        "left": [], "inheritable": [False, False],
    }  # fmt: skip


def test_what_was_meant_for_another_process_is_left_alone() -> None:
    environment = {
        INHERITED: json.dumps({"pid": 1, "lock": 3, "sockets": [[4, True, 0]]}),
        "LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "api", "PATH": "/bin",
    }  # fmt: skip
    found = receive(environment)
    assert (found.sockets, found.lock, found.again) == ((), None, False)
    assert environment == {"PATH": "/bin"}


def test_the_service_managers_sockets_are_taken_those_that_listen() -> None:
    script = (
        "import os; from branchd.adapters.handover import receive; os.environ['LISTEN_PID'] = str(os.getpid());"
        "print([(one.socket.getsockname(), one.ours) for one in receive(os.environ).sockets])"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as other:
        name = listener.getsockname()
        taken = (listener.fileno(), other.fileno())
        # to the numbers 3 and 4, as a service manager does
        shell = f'exec {sys.executable} -c "$1" 3<&{taken[0]} 4<&{taken[1]}'
        done = subprocess.run(
            ["bash", "-c", shell, "bash", script], pass_fds=taken, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LISTEN_FDS": "2"},
        )  # fmt: skip
    assert done.stdout.strip() == str([(name, False)])


def test_what_the_service_manager_gives_and_is_no_socket_is_refused_in_words(tmp_path: Path) -> None:
    script = "import os; from branchd.adapters.handover import receive; os.environ['LISTEN_PID'] = str(os.getpid());"
    script += "receive(os.environ)"
    os.mkfifo(tmp_path / "fifo")
    done = subprocess.run(
        ["bash", "-c", f'exec {sys.executable} -c "$1" 3<>"$2"', "bash", script, tmp_path / "fifo"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LISTEN_FDS": "1"},
    )  # fmt: skip
    assert "Fatal: descriptor 3, which the service manager gives, is no socket: " in done.stderr


async def test_a_trial_that_fails_tells_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(text: str) -> None:
        script = f"import sys; sys.stderr.write({text!r}); sys.exit(1)"
        monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", script, "--new-id"])

    words("branchd: warning: beside the point\nbranchd: the configuration has 1 fault\n  /slots: is no number\n")
    with pytest.raises(Fatal, match=r"^the configuration has 1 fault; /slots: is no number$"):
        await rehearse()
    words("Traceback (most recent call last):\n  File x\nImportError: no such thing\n")
    with pytest.raises(Fatal, match=r"^ImportError: no such thing$"):
        await rehearse()


async def test_a_trial_gets_the_command_line_without_what_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; sys.exit(sys.argv[1:] != ['run', '--rehearse', '/state'])"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", script, "run", "--same-machine"])
    await rehearse("--rehearse", "/state")
