"""Runs on the machine, as root: does what a test asks for over the serial line, one command of bash after another."""

import json
import subprocess
import tty

with open("/dev/ttyS1", "r+b", buffering=0) as line:
    tty.setraw(line)
    line.write(b"up\n")
    for asked in iter(line.readline, b""):
        done = subprocess.run(
            ["bash", "-c", json.loads(asked)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        answer = json.dumps([done.returncode, done.stdout.decode(errors="replace")]).encode() + b"\n"
        while answer:
            answer = answer[line.write(answer) :]
