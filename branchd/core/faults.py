"""What makes a name, a queue, a label or a signal wrong; each fault with its place and what to do.

What makes a spec wrong stands in spec_faults.py.
"""

import re
from collections.abc import Iterator, Mapping

from branchd.core.errors import Fault
from branchd.core.spec import Pool

#: names of branches, apps, instances, labels: safe in a path, a URL, a shell and a selector
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def name_fault(name: str, pointer: str, what: str = "name") -> Fault | None:
    if NAME.fullmatch(name):
        return None
    return Fault(
        pointer, f"{name[:80]!r} is not a valid {what}",
        "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    )  # fmt: skip


def queue_fault(name: str, pointer: str) -> Fault | None:
    if (
        0 < len(name.encode(errors="replace")) <= 255
        and name.isprintable()
        and "," not in name
        and name.strip() == name
    ):
        return None
    return Fault(
        pointer, f"{name[:80]!r} is not a valid queue name", "1 to 255 bytes of printable text without a comma"
    )


#: signals that a stop plan, or a person, may send
SIGNALS = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "KILL", "CONT", "STOP", "WINCH", "TTIN", "TTOU", "ABRT")


def autoscale_fault(pool: Pool, pointer: str) -> Fault:
    return Fault(pointer, f"the {pool} pool cannot be autoscaled", "use the prefork pool, or concurrency")


def escaped(name: str) -> str:
    """As one step of a JSON pointer (RFC 6901, section 3)."""
    return name.replace("~", "~0").replace("/", "~1")


def label_faults(labels: Mapping[str, str], pointer: str) -> Iterator[Fault]:
    for name, value in labels.items():
        if fault := name_fault(name, f"{pointer}/{escaped(name)}", "label"):
            yield fault
        if len(value) > 255 or not value.isprintable():
            yield Fault(f"{pointer}/{escaped(name)}", "is not a valid value", "at most 255 printable characters")
