"""A user's Celery application: old enough in its ways for every Celery that is supported."""

import os
import time

from celery import Celery
from kombu import Queue

app = Celery("proj", set_as_current=False)
app.conf.update(
    task_ignore_result=True,
    task_queues=[Queue("celery"), Queue("own", queue_arguments={"x-max-length": 1000})],
    broker_transport_options={
        "data_folder_in": os.environ.get("PROJ_FOLDER"),
        "data_folder_out": os.environ.get("PROJ_FOLDER"),
        "control_folder": os.environ.get("PROJ_FOLDER"),
    }
    if "PROJ_FOLDER" in os.environ
    else {},
)


@app.task(name="proj.note")
def note(path):
    """Leaves a file."""
    with open(path, "w") as file:
        file.write("done")


@app.task(name="proj.wait_for")
def wait_for(path):
    """Runs until there is such a file, or for a minute."""
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.02)


@app.task(name="proj.environment")
def environment(path):
    """Leaves what a program started by a task would get to see, and where modules come from."""
    import sys

    with open(path + ".part", "w") as file:
        file.write("\n".join([*os.environ, *sys.path]))
    os.rename(path + ".part", path)
