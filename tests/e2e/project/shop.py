"""A user's Celery application. It knows nothing of branchd; PROJECT_RESULTS is the folder that its results go to."""

import mmap
import os
import subprocess
import sys
import time

from celery import Celery

app = Celery("shop", backend=f"file://{os.environ['PROJECT_RESULTS']}")


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(acks_late=True)
def nap(seconds: float, journal: str) -> str:
    """Notes each time that it begins, so that a second delivery shows."""
    with open(journal, "a") as file:
        file.write("began\n")
    time.sleep(seconds)
    return f"slept {seconds:g} s"


@app.task(acks_late=True)
def run_away(pid_file: str) -> None:
    """Starts a program in a session within a session, which nobody waits for, and does not come to an end."""
    script = f"setsid sleep 600 & echo $! > {pid_file}.part && mv {pid_file}.part {pid_file}"
    subprocess.run(["setsid", "sh", "-c", script], check=True)
    time.sleep(600)


@app.task
def hold_interpreter(path: str) -> str:
    """Lets no other thread run, as code in C can, until the file's first byte is 1; after two minutes at the latest."""
    deadline = time.monotonic() + 120
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ) as memory:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000)
        try:
            while memory[0] != ord("1") and time.monotonic() < deadline:
                pass
        finally:
            sys.setswitchinterval(interval)
    return "let go"
