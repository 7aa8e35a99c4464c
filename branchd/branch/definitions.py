"""Apps, queues and instances as they are defined: what may be written, and what it comes to when put together.

The records are held by layers.py. Checks without effects: writing down and acting is the service's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from branchd.branch.layers import Layers
from branchd.branch.ports import Host
from branchd.branch.records import AppRecord, Snapshot
from branchd.branch.world import Policies
from branchd.core.access import Scope
from branchd.core.errors import Fault, Invalid, SpawnFailed
from branchd.core.faults import name_fault, queue_fault
from branchd.core.merge import tells_secret
from branchd.core.spec import Kind, Limits, Pool, Restart, Spec, Unusable, Wanted, size_in_bytes
from branchd.core.supervision_faults import outward
from branchd.core.values import Key, QueueDeclaration
from branchd.wire.decode import decode
from branchd.wire.resources import QueueBody
from branchd.wire.spec import effective

#: apps, and queues of an app, and instances, that a branch keeps: far above use, far below harm
MOST = 10_000

#: those of AMQP
EXCHANGE_TYPES = ("direct", "topic", "fanout", "headers")


#: why an instance is bound by what other branches may run here
_FOREIGN = "the app's definition comes from another branch, and "


class Definitions(Layers):
    def __init__(self, policies: Policies, snapshot: Snapshot, host: Host) -> None:
        super().__init__(snapshot)
        self._policies = policies
        self._host = host
        self.own_account = host.account(None)[1]  #: its name

    def declaration(self, app: str, name: str) -> QueueDeclaration:
        """As declared for the app, else Celery's default."""
        record = self.find_queue(app, name)
        return record.queue if record is not None else QueueDeclaration(name)

    def declarations(self, app: str, spec: Spec) -> tuple[QueueDeclaration, ...] | None:
        if spec.kind is not Kind.CELERY or spec.queues is None:
            return None
        return tuple(self.declaration(app, name) for name in spec.queues)

    def effective(self, app: AppRecord, raw: Mapping[str, Any], *, authored: bool | None = None) -> Spec:
        """An instance's spec over its app's over the branch's defaults. Invalid where it is wrong or incomplete.

        `authored`: whether an operator of this branch wrote the app; None: as it is known.
        """
        default_user = self._policies.default_user
        defaults = {} if default_user is None else {"user": default_user}
        spec = effective(dict(app.spec), dict(raw), defaults)
        faults = account_faults(spec, self._policies.allow_users, self.own_account)
        if not (self.authored(app.name, app.spec) if authored is None else authored):
            faults += self.peer_faults(spec, _FOREIGN, f"write all of it here: branchctl app set {app.name} --replace")
        if faults:
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
                user=user if isinstance(user := given.get("user"), str) else None,  # who may not touch it asks for it
                wanted=Wanted.DOWN if given.get("wanted") == Wanted.DOWN else Wanted.UP,
                why=f"its spec is not valid any more: {'; '.join(map(_told, invalid.faults[:10]))}",
            )

    def peer_faults(self, spec: Spec, what: str = "", cure: str = "set `user`") -> list[Fault]:
        """Why an effective spec, valid here, may not come from another branch: only as a user other than root.

        `what` comes from there, in words before the reason; nothing: the spec itself. `cure`: beside the configuration.
        """
        if self._policies.peer_scope is Scope.ADMIN:
            return []
        hint = "the branch's configuration decides: [auth] peer_scope"
        if self._policies.peer_scope is Scope.READ:
            return [Fault("", f"{what}other branches may define nothing that runs here", hint)]
        try:
            uid = self._host.uid(spec.user)
        except SpawnFailed as failure:
            return [Fault("/user", failure.detail, failure.hint)]
        faults = []
        if uid == 0:
            faults.append(Fault("/user", f"{what}other branches may run nothing as root here", f"{cure}; {hint}"))
        if spec.group is not None:
            faults.append(Fault("/group", f"{what}other branches may choose no group here", f"{cure}; {hint}"))
        for pointer, thing in outward(spec):
            faults.append(Fault(pointer, f"{what}{thing} may not come from other branches", hint))
        if spec.env_file is not None:  # the daemon reads it as who it is itself
            faults.append(Fault("/env_file", f"{what}other branches may have no file read here", f"{cure}; {hint}"))
        for pointer, wrong in _privileged(spec.limits, self._host.hard_limits()):
            faults.append(Fault(pointer, f"{what}other branches may ask here for nothing that is {wrong}", hint))
        return faults

    def node_name(self, key: Key) -> str:
        name = self._policies.node_name
        for field, value in (("{app}", key.app), ("{name}", key.name), ("{branch}", self._policies.name)):
            name = name.replace(field, value)
        return name


def _privileged(limits: Limits, hard: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """What of limits takes root's rights: pointers, and what is allowed. `hard`: the daemon's own limits."""
    for name in ("nice", "oom_score_adj"):
        if (getattr(limits, name) or 0) < 0:
            yield f"/limits/{name}", "less than 0"
    for name, most in hard.items():
        asked = getattr(limits, name)
        if asked is not None and size_in_bytes(asked) > most:
            yield f"/limits/{name}", f"more than {most}, which is the daemon's own"


def _told(fault: Fault) -> str:
    """For everybody who may read: without the value where it may be a secret."""
    return f"{fault.pointer}: {'is not valid' if tells_secret(fault.pointer) else fault.detail}"


def account_faults(spec: Spec, allowed: tuple[str, ...] | None, own_account: str) -> list[Fault]:
    """Why an effective spec may not run here as who it says. `allowed`: [auth] allow_users; None: anybody."""
    if allowed is None:
        return []
    faults = []
    user = spec.user or own_account
    if user not in allowed:
        hint = f"one of {', '.join(allowed) or 'none at all'}"
        faults.append(Fault("/user", f"{user} is not in [auth] allow_users", hint))
    if spec.group is not None:
        hint = "leave it out: the user's own groups are used"
        faults.append(Fault("/group", "cannot be chosen where [auth] allow_users is set", hint))
    return faults


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
    if not _finite(body.options):
        faults.append(Fault("/options", "has nan or inf in it", "JSON has no such numbers"))
    return faults


def _finite(value: Any) -> bool:
    """Every number in it is one; TOML has others."""
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
