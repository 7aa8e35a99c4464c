"""Apps, queues and instances as they are defined: what may be written, and what it comes to when put together.

Holds the records in memory; pure look-ups and checks. Writing them down and acting on them is the service's.
"""

from collections.abc import Mapping
from typing import Any

from branchd.branch.records import AppRecord, QueueRecord, Snapshot
from branchd.branch.world import Policies
from branchd.core.errors import Fault, Invalid, NotFound
from branchd.core.faults import name_fault, queue_fault
from branchd.core.spec import Kind, Pool, Restart, Spec, Unusable, Wanted
from branchd.core.values import Key, QueueDeclaration
from branchd.wire.decode import decode
from branchd.wire.resources import QueueBody
from branchd.wire.spec import effective

#: apps, and queues of an app, and instances, that a branch keeps: far above use, far below harm
MOST = 10_000

#: those of AMQP
EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")


class Definitions:
    def __init__(self, policies: Policies, snapshot: Snapshot, own_account: str) -> None:
        """`own_account`: the name of the account that the daemon runs as."""
        self._policies = policies
        self._own_account = own_account
        # The definition of an app may come later than its instances.
        self.apps = {instance.key.app: AppRecord(instance.key.app, {}) for instance in snapshot.instances}
        self.apps |= {app.name: app for app in snapshot.apps}
        self.queues: dict[str, dict[str, QueueRecord]] = {}
        for record in snapshot.queues:
            self.queues.setdefault(record.app, {})[record.queue.name] = record

    def app(self, name: str) -> AppRecord:
        if name not in self.apps:
            raise NotFound(f"there is no app {name[:80]!r}", "branchctl app ls lists them")
        return self.apps[name]

    def queue(self, app: str, name: str) -> QueueRecord:
        self.app(app)
        found = self.queues.get(app, {}).get(name)
        if found is None:
            raise NotFound(f"app {app} declares no queue {name[:80]!r}")
        return found

    def declaration(self, app: str, name: str) -> QueueDeclaration:
        """As declared for the app, else Celery's default."""
        record = self.queues.get(app, {}).get(name)
        return record.queue if record is not None else QueueDeclaration(name)

    def declarations(self, app: str, spec: Spec) -> tuple[QueueDeclaration, ...] | None:
        if spec.kind is not Kind.CELERY or spec.queues is None:
            return None
        return tuple(self.declaration(app, name) for name in spec.queues)

    def effective(self, app: AppRecord, raw: Mapping[str, Any]) -> Spec:
        """An instance's spec over its app's over the branch's defaults. Invalid where it is wrong or incomplete."""
        default_user = self._policies.default_user
        defaults = {} if default_user is None else {"user": default_user}
        spec = effective(dict(app.spec), dict(raw), defaults)
        if faults := self._account_faults(spec):
            raise Invalid(faults)
        return spec

    def standing(self, app: AppRecord, raw: Mapping[str, Any]) -> Spec:
        """As effective(), of what was accepted before; Unusable where that is wrong today."""
        try:
            return self.effective(app, raw)
        except Invalid as invalid:
            given = {**app.spec, **raw}
            return Unusable(
                kind=Kind.COMMAND if given.get("kind") == Kind.COMMAND else Kind.CELERY,
                pool=Pool.SOLO,  # nothing is told to a worker of unknown bounds
                restart=Restart(max_restarts=0),
                wanted=Wanted.DOWN if given.get("wanted") == Wanted.DOWN else Wanted.UP,
                why=f"its spec is not valid any more: {'; '.join(map(_told, invalid.faults[:10]))}",
            )

    def _account_faults(self, spec: Spec) -> list[Fault]:
        allowed = self._policies.allow_users
        if allowed is None:
            return []
        faults = []
        user = spec.user or self._own_account
        if user not in allowed:
            hint = f"one of {', '.join(allowed) or 'none at all'}"
            faults.append(Fault("/user", f"{user} is not in [auth] allow_users", hint))
        if spec.group is not None:
            hint = "leave it out: the user's own groups are used"
            faults.append(Fault("/group", "cannot be chosen where [auth] allow_users is set", hint))
        return faults

    def node_name(self, key: Key) -> str:
        name = self._policies.node_name
        for field, value in (("{app}", key.app), ("{name}", key.name), ("{branch}", self._policies.name)):
            name = name.replace(field, value)
        return name


def _told(fault: Fault) -> str:
    """For everybody who may read: without the value where it may be a secret."""
    secret = fault.pointer.startswith(("/env", "/broker"))
    return f"{fault.pointer}: {'is not valid' if secret else fault.detail}"


def check_name(name: str, pointer: str, what: str) -> None:
    if fault := name_fault(name, pointer, what):
        raise Invalid([fault])


def declared(name: str, body: Any) -> QueueDeclaration:
    """The declaration in the body of a request. Invalid."""
    if fault := queue_fault(name, ""):
        raise Invalid([fault])
    given = decode(QueueBody, body, _body_faults)
    return QueueDeclaration(name, given.exchange, given.exchange_type, given.routing_key, dict(given.options))


def _body_faults(body: QueueBody) -> list[Fault]:
    faults = []
    for field in ("exchange", "exchange_type", "routing_key"):
        text = getattr(body, field)
        if text is not None and (len(text.encode()) > 255 or not text.isprintable()):
            faults.append(Fault(f"/{field}", "is not valid", "at most 255 bytes of printable text"))
    if body.exchange_type not in EXCHANGE_TYPES and not body.exchange_type.startswith("x-"):
        hint = f"one of {', '.join(EXCHANGE_TYPES)}, or a plugin's own, which begins with x-"
        faults.append(Fault("/exchange_type", f"{body.exchange_type[:80]!r} is not known", hint))
    return faults
