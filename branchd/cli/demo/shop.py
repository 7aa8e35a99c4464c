"""The demo's Celery application, as a user would write it. It is copied into the demo's folder and knows no branchd.

SHOP_FOLDER is where its results go, and its messages too where no broker is given (CELERY_BROKER_URL).
"""

import os
import time
from pathlib import Path

from celery import Celery

folder = Path(os.environ["SHOP_FOLDER"])
app = Celery("shop", backend=f"file://{folder / 'results'}")
app.conf.task_default_queue = os.environ["SHOP_QUEUE"]
if "CELERY_BROKER_URL" not in os.environ:
    # Carries messages in files: needs no server, and is good for a first try, not for production.
    app.conf.broker_url = "filesystem://"
    app.conf.broker_transport_options = {
        "data_folder_in": str(folder / "messages"),
        "data_folder_out": str(folder / "messages"),
        "control_folder": str(folder / "control"),
    }


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(acks_late=True)
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return f"slept {seconds:g} s"
