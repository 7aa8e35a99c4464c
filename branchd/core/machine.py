"""What `branchctl doctor` says of the machine: what it offers to those who supervise, and what is wrong with it.

As in diagnosis.py, nothing is looked at here: facts are handed in.
"""

from collections.abc import Iterator, Mapping, Sequence

from msgspec import field

from branchd.core.diagnosis import Diagnosis, Level
from branchd.core.value import Value

#: descriptors that the daemon uses itself
OWN_DESCRIPTORS = 100
#: and for each instance: its process, its agent's line, a probe
DESCRIPTORS_EACH = 3

#: share of the state's disk below which little is left
LITTLE_DISK = 0.05


class ProcessFacts(Value):
    """What the kernel lets the daemon do with processes."""

    cgroups: bool = True  #: each instance has a control group of its own
    why_none: str = ""
    cure: str = ""
    controllers: frozenset[str] = frozenset()  #: that limits can be enforced by
    joins_late: bool = False  #: programs cannot begin in their group: a start takes 10 ms more
    tells_exits: bool = True  #: exit codes of what an earlier daemon started are known
    open_files: int = 1 << 20  #: the daemon's limit


class MachineFacts(Value):
    processes: ProcessFacts
    instances: int
    disk_free: float  #: of the state's disk, 0 to 1
    unenforced: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  #: instance -> limit -> why
    lost_logs: Sequence[str] = ()  #: instances whose logs were taken away while they ran
    strangers: Mapping[str, int] = field(default_factory=dict)  #: accounts that are missing -> instances of theirs


def machine(facts: MachineFacts) -> list[Diagnosis]:
    return [*_cgroups(facts.processes), *_limits(facts), *_accounts(facts), *_logs(facts), *_room(facts)]


def _cgroups(facts: ProcessFacts) -> Iterator[Diagnosis]:
    check = "control groups"
    if facts.cgroups:
        offered = ", ".join(sorted(facts.controllers & {"cpu", "memory", "pids"})) or "no"
        yield Diagnosis(check, Level.OK, f"each instance has its own; {offered} controllers for limits")
    else:
        yield Diagnosis(check, Level.WARNING, f"{facts.why_none}: a tree is ended by its sessions and a mark in its "
                        "environment, which a process can shake off", facts.cure)  # fmt: skip
    if facts.joins_late:
        yield Diagnosis("spawning", Level.WARNING, "programs cannot begin in their control group, they join it: each "
                        "start takes 10 ms more", "let the container's filter of system calls pass clone3")  # fmt: skip
    if not facts.tells_exits:
        yield Diagnosis("exit codes", Level.OK, "of what an earlier daemon started the exit code stays unknown: the "
                        "kernel is older than 6.15")  # fmt: skip


def _limits(facts: MachineFacts) -> Iterator[Diagnosis]:
    if not facts.unenforced:
        return
    whys = {f"{limit}: {why}" for refused in facts.unenforced.values() for limit, why in refused.items()}
    names = ", ".join(sorted(facts.unenforced)[:5]) + (" ..." if len(facts.unenforced) > 5 else "")
    yield Diagnosis("limits", Level.FAILURE, f"not enforced for {len(facts.unenforced)} instances ({names}): "
                    + "; ".join(sorted(whys)),
                    "run under systemd with Delegate=yes on a host with cgroup v2 alone; or take `max_memory`, which "
                    "needs none")  # fmt: skip


def _accounts(facts: MachineFacts) -> Iterator[Diagnosis]:
    for user, count in sorted(facts.strangers.items()):
        yield Diagnosis("accounts", Level.FAILURE, f"user {user!r} does not exist; {count} instances are to run as it",
                        f"create it: useradd --system {user}; or change `user`")  # fmt: skip


def _logs(facts: MachineFacts) -> Iterator[Diagnosis]:
    if facts.lost_logs:
        names = ", ".join(sorted(facts.lost_logs)[:5]) + (" ..." if len(facts.lost_logs) > 5 else "")
        yield Diagnosis("logs", Level.WARNING, f"of {len(facts.lost_logs)} instances the log was removed, moved or "
                        f"replaced while they ran ({names}): what they write cannot be read here",
                        "branchctl restart them: they open new ones; and let nothing else rotate the logs folder: "
                        "branchd does")  # fmt: skip


def _room(facts: MachineFacts) -> Iterator[Diagnosis]:
    needed = OWN_DESCRIPTORS + DESCRIPTORS_EACH * facts.instances
    limit = facts.processes.open_files
    if needed > limit:
        yield Diagnosis("open files", Level.WARNING, f"{facts.instances} instances may need {needed} descriptors, the "
                        f"daemon's hard limit is {limit}", "raise LimitNOFILE of its unit, or ulimit -Hn")  # fmt: skip
    if facts.disk_free < LITTLE_DISK:
        yield Diagnosis("disk", Level.WARNING, f"{100 * facts.disk_free:.1f} % of the state's disk is free",
                        "free space: a full disk stops every start")  # fmt: skip
