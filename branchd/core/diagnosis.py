"""What `branchctl doctor` says of a branch: each check judges facts that are handed in, and names the cure.

Where the facts come from is the caller's; nothing here looks at anything.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from msgspec import field

from branchd.core.errors import Fault
from branchd.core.value import Value

#: seconds that a clock may be away from the median of the neighbourhood; above it definitions are not written: a clock
#: that is ahead would win over what is written later elsewhere
MOST_CLOCK_OFFSET = 60.0


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"  #: it works, and might not in some case
    FAILURE = "failure"


class Diagnosis(Value):
    check: str  #: its name
    level: Level
    detail: str
    cure: str = ""


class Failures(Value):
    """What went wrong in the background of one part of the daemon, and nobody expected."""

    part: str  #: a word for operators
    count: int = 0  #: since the start
    last: str = ""  #: the error

    def one_more(self, error: Exception) -> "Failures":
        return Failures(self.part, self.count + 1, f"{type(error).__name__}: {error}"[:500])


class MeshFacts(Value):
    """Of a branch that has a broker."""

    connected: bool
    where: str  #: the broker, without its password
    why: str = ""  #: why it is not connected, in words that say what to do
    definite: bool = True  #: whether the broker tells when nobody holds a key; False on files
    user: str = ""  #: at the broker; "" where there are none
    vhost: str = ""
    cluster: str = ""  #: that the broker says it belongs to now
    first_cluster: str = ""  #: that the first broker since the start said
    twin: bool = False  #: another daemon with this branch's id is connected
    guarding: str = ""  #: why nothing is concluded from absence, in words; "" where it is
    guarding_for: float = 0.0  #: seconds that this lasts at most
    missing: tuple[str, ...] = ()  #: names of branches that are silent, or ended lately and did not say that they go
    clock_offset: float | None = None  #: seconds from the median; None: nobody to compare with
    dropped: Mapping[str, int] = field(default_factory=dict)  #: messages by why, since the start
    failures: tuple[Failures, ...] = ()  #: of parts whose background failed


#: why messages are dropped -> how bad, what it means, what to do
DROPPED: Mapping[str, tuple[Level, str, str]] = {
    "unknown key": (
        Level.FAILURE, "sealed with a key that is not accepted here",
        "compare the key ids, the second word of each line in the key files: every branch needs the same file",
    ),
    "forged": (
        Level.FAILURE, "not written with the neighbourhood's key, or changed since",
        "somebody who knows the broker's password writes there: change it, and see who is connected",
    ),
    "replayed": (
        Level.FAILURE, "sent again by somebody, or out of order",
        "somebody who knows the broker's password may do that: change it; it can also be two lives of one branch that "
        "were restored from one running image",
    ),
    "wrong target": (
        Level.WARNING, "sealed for another branch, or for an earlier start of this one",
        "a few after a restart are usual; many: somebody who knows the broker's password copies messages",
    ),
    "expired": (
        Level.FAILURE, "sent more than 15 minutes ago, or from now, by the sender's clock",
        "compare the clocks of the branches, and keep them in step (chrony, systemd-timesyncd)",
    ),
    "wrong neighbourhood": (
        Level.WARNING, "of another neighbourhood on the same broker",
        "give each neighbourhood a vhost and a user of its own",
    ),
    "wrong version": (
        Level.FAILURE, "sealed by another version of branchd",
        "install the same version everywhere: branchctl branch ls shows them",
    ),
    "garbage": (
        Level.WARNING, "not messages of branchd",
        "something else writes to its exchanges: give the neighbourhood a vhost of its own",
    ),
    "oversized": (
        Level.WARNING, "longer than any message of branchd",
        "something else writes to its exchanges: give the neighbourhood a vhost of its own",
    ),
    "invalid": (
        Level.FAILURE, "said by a branch, and nothing that branchd says",
        "install the same version everywhere; else somebody who has the neighbourhood's key makes messages up: give "
        "the honest hosts a new key",
    ),
    "impostor": (
        Level.FAILURE, "said by one branch in the name of another one",
        "somebody who has the neighbourhood's key says what is not so: compare `branchctl branch ls -o wide` with your "
        "hosts, and give the honest ones a new key",
    ),
    "from the future": (
        Level.FAILURE, "definitions from a clock that is days ahead",
        "set the clock of the branch that wrote them, and write them again; branchctl doctor --branch NAME tells which",
    ),
    "not readable": (
        Level.FAILURE, "definitions that this version cannot read",
        "install the same version everywhere: branchctl branch ls shows them",
    ),
    "too many": (
        Level.WARNING, "more questions at one time than this branch works on",
        "look for what asks so much: branchctl events, branchctl branch ls",
    ),
    "late": (
        Level.OK, "answers to questions that were given up", "",
    ),
}  # fmt: skip


def mesh(facts: MeshFacts) -> list[Diagnosis]:
    return [
        *_connection(facts),
        *_cluster(facts),
        *_access(facts),
        *_guard(facts),
        _clock(facts),
        *_dropped(facts),
        *_background(facts),
    ]


def root_without_default_user(root: bool, default_user: str | None, restricted: bool) -> Diagnosis:
    """`restricted`: the configuration lists the accounts that instances may run as."""
    check = "accounts"
    if root and default_user is None and not restricted:
        return Diagnosis(check, Level.WARNING, "instances that name no user run as root",
                         "set [auth] default_user and allow_users")  # fmt: skip
    return Diagnosis(check, Level.OK, f"instances that name no user run as {default_user or 'the daemon does'}")


#: the name of the check of definition_files()
DEFINITION_FILES = "definition files"


def definition_files(faults: Sequence[Fault], left: Sequence[str]) -> list[Diagnosis]:
    """Nothing where there is nothing wrong with them: most branches have none. `left`: what no file has any more."""
    if not faults and left:
        told = f"{', '.join(left[:5])}{f' and {len(left) - 5} more' if len(left) > 5 else ''}"
        cure = "bring the files back, or `branchctl update` stops and deletes it, with its logs"
        return [Diagnosis(DEFINITION_FILES, Level.WARNING, f"not in them any more, and left as it is: {told}", cure)]
    if not faults:
        return []
    told = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults[:5])
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    return [
        Diagnosis(DEFINITION_FILES, Level.FAILURE, f"nothing of them is applied since: {told}{more}",
                  "`branchctl reread` tells all of it; put it right, then `branchctl update`")
    ]  # fmt: skip


def refused(when: str, detail: str, cures: tuple[str, ...]) -> Diagnosis:
    """Of a daemon that is not there: the last start was refused."""
    return Diagnosis("start", Level.FAILURE, f"the start of {when} was refused: {detail}", "; ".join(cures))


def _connection(facts: MeshFacts) -> Iterator[Diagnosis]:
    check = "broker"
    if facts.twin:
        yield Diagnosis("identity", Level.FAILURE, "another daemon with this branch's id is connected",
                        "one of them runs on a copied state folder: start that one once with "
                        "`branchd run --new-id`")  # fmt: skip
    if facts.connected:
        yield Diagnosis(check, Level.OK, f"connected to {facts.where}")
    else:
        yield Diagnosis(check, Level.FAILURE, f"not connected to {facts.where}: {facts.why or 'connecting'}",
                        "what runs goes on, and this branch answers for itself; see that the broker runs and can be "
                        "reached from here")  # fmt: skip
    if not facts.definite:
        yield Diagnosis("transport", Level.WARNING, "files instead of a broker: who is gone is guessed from silence, "
                        "names are not claimed, and two instances of one name are found afterwards",
                        "for trying it out on one machine; use RabbitMQ for anything else")  # fmt: skip


def _cluster(facts: MeshFacts) -> Iterator[Diagnosis]:
    if facts.cluster and facts.first_cluster and facts.cluster != facts.first_cluster:
        yield Diagnosis("cluster", Level.FAILURE, f"the broker belongs to {facts.cluster!r}, and the one before to "
                        f"{facts.first_cluster!r}: branches at one do not see those at the other",
                        "[mesh] broker may only list nodes of one cluster")  # fmt: skip


def _access(facts: MeshFacts) -> Iterator[Diagnosis]:
    shared = [f"the user {facts.user!r}"] if facts.user == "guest" else []
    shared += ["the vhost '/'"] if facts.vhost == "/" else []
    if shared:
        yield Diagnosis("broker access", Level.WARNING, f"{' and '.join(shared)}: whatever else uses the broker can "
                        "disturb the neighbourhood, though not read or forge its messages",
                        "give it a vhost and a user of its own: rabbitmqctl add_vhost, add_user, set_permissions, and "
                        "name them in [mesh] broker")  # fmt: skip


def _guard(facts: MeshFacts) -> Iterator[Diagnosis]:
    names = ", ".join(facts.missing[:5]) + (" ..." if len(facts.missing) > 5 else "")
    if facts.guarding:
        yield Diagnosis("mass guard", Level.WARNING, f"{facts.guarding}: nothing is concluded from who is missing"
                        + (f" ({len(facts.missing)}: {names})" if names else ""),
                        f"it ends within {facts.guarding_for:.0f} s; see whether the broker or the network is parted. "
                        "Where they are gone for good: branchctl branch confirm, here")  # fmt: skip
    elif facts.missing:
        yield Diagnosis("branches", Level.WARNING, f"{len(facts.missing)} missing: {names}: lists lack theirs, and "
                        "what is not found may be there",
                        "branchctl doctor there says why; one that ended without a goodbye is missed for 10 minutes, "
                        "or until branchctl branch confirm, here")  # fmt: skip


def _clock(facts: MeshFacts) -> Diagnosis:
    check, offset = "clock", facts.clock_offset
    if offset is None:
        return Diagnosis(check, Level.OK, "there is no other branch to compare it with")
    away = f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the median of the neighbourhood"
    if abs(offset) > MOST_CLOCK_OFFSET:
        return Diagnosis(check, Level.FAILURE, f"{away}: definitions are not written here",
                         "set the clock, and keep it in step (chrony, systemd-timesyncd)")  # fmt: skip
    return Diagnosis(check, Level.OK, away)


def _dropped(facts: MeshFacts) -> Iterator[Diagnosis]:
    for reason, count in sorted(facts.dropped.items()):
        level, meaning, cure = DROPPED.get(reason, (Level.WARNING, "dropped", ""))
        yield Diagnosis("messages", level, f"{count} dropped as '{reason}': {meaning}", cure)


def _background(facts: MeshFacts) -> Iterator[Diagnosis]:
    for failures in facts.failures:
        if failures.count:
            yield Diagnosis("background", Level.WARNING, f"{failures.part} failed {failures.count} times since the "
                            f"start, last with {failures.last}",
                            "it went on; the daemon's log tells where: report it. A restart of the daemon stops "
                            "nothing that runs")  # fmt: skip
