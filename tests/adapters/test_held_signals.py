"""Signals that come before anybody handles them, in processes of their own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import until_sync

#: holds them, tells so, goes on when its standard input ends, handles TERM, and tells how often it was called;
#: where it read "stay", it does
PROGRAM = """
import signal, sys
from branchd.adapters import held_signals
held_signals.PATIENCE = float(sys.argv[1])
with held_signals.held_at_start():
    print("held", flush=True)
    told = sys.stdin.read()
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append("TERM"))
    held_signals.let_signals()
    print(came, flush=True)
    while told == "stay":
        signal.pause()
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
"""


def begun(patience: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(patience)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_what_comes_early_waits_until_it_is_handled() -> None:
    process = begun(1000)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "['TERM']\n[]\n"
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_start_that_hangs_is_ended_by_them_all_the_same(number: signal.Signals) -> None:
    process = begun(0.1)
    process.send_signal(number)
    assert process.wait(30) == -number
    process.communicate()


def test_one_that_comes_when_a_start_has_long_been_hanging_ends_it_too() -> None:
    process = begun(0.1)
    until_sync(lambda: not all(waits(process.pid)), what="a thread that lets signals through")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    process.communicate()


def test_once_they_are_handled_no_other_thread_takes_them() -> None:
    """A reload holds them back in the main thread alone, and they would end the daemon there."""
    process = begun(0.1)
    until_sync(lambda: not all(waits(process.pid)), what="a thread that lets signals through")
    assert process.stdin is not None
    process.stdin.write("stay")
    process.stdin.close()
    assert process.stdout is not None
    assert process.stdout.readline() == "[]\n"
    until_sync(lambda: len(waits(process.pid)) == 1, what="its end")
    process.kill()
    process.wait()
    process.stdout.close()


def waits(pid: int) -> list[bool]:
    """Of each thread, whether TERM waits there."""
    lines = [line for path in Path(f"/proc/{pid}/task").glob("*/status") for line in path.read_text().splitlines()]
    masks = [int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:")]
    return [bool(mask & 1 << signal.SIGTERM - 1) for mask in masks]
