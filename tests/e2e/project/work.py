"""A user's Celery application. It knows nothing of branchd; PROJECT_RESULTS is the folder that its results go to."""

import os
import subprocess
import time

from celery import Celery

app = Celery("work", backend=f"file://{os.environ['PROJECT_RESULTS']}")


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
def crunch(number: int) -> int:
    """Holds the interpreter: a sum is one step of it, however long."""
    return sum(range(number))
