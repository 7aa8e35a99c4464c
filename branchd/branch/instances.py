"""Use cases of instances: created, changed, started and stopped, waited for."""

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from branchd.branch.fleet import Fleet, expect, expect_new
from branchd.branch.layers import FILE_CURE
from branchd.branch.outcomes import derived_name, request_digest, request_id
from branchd.branch.records import InstanceRecord, OutcomeRecord
from branchd.branch.replicas import check_deletable
from branchd.branch.supervisor import Supervisor
from branchd.core.access import Principal
from branchd.core.errors import Conflict, Denied, Fault, FileOwned, Invalid, StorageFailed, Unavailable
from branchd.core.faults import SIGNALS, name_fault
from branchd.core.lifecycle import State
from branchd.core.spec import Spec, Wanted
from branchd.core.values import Key, signal_number
from branchd.wire.resources import Instance
from branchd.wire.spec import accept, patched


class Instances:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def list(self, app: str | None = None) -> list[Instance]:
        """By name; the same objects as long as nothing changed."""
        if app is not None:
            self._fleet.definitions.app(app)
        supervisors = self._fleet.all() if app is None else self._fleet.of(app)
        return [supervisor.view() for supervisor in sorted(supervisors, key=lambda supervisor: supervisor.key)]

    def tally(self) -> tuple[int, int]:
        """How many there are, and how many of them do not run though they are wanted up."""
        found = self._fleet.all()
        return len(found), sum(one.spec.wanted is Wanted.UP and one.state is not State.RUNNING for one in found)

    def stands_for(self, app: str, name: str) -> bool:
        """Whether it is here; a replacement whose elder has the name is not yet."""
        supervisor = self._fleet.find(Key(app, name))
        return supervisor is not None and not supervisor.waiting

    def get(self, app: str, name: str) -> Instance:
        return self._fleet.get(app, name).view()

    async def create(
        self, principal: Principal, app: str, body: Any, idempotency_key: str | None = None
    ) -> tuple[Instance, bool]:
        """The instance, and whether this call made it: False for the replay of an earlier one.

        Denied where a limited principal may not. The body is a spec and, if it is to have one of the caller's choice, a
        name.
        """
        spec = _object(body)
        name = spec.pop("name", None)
        digest = request_digest(app, body)
        request = secrets.token_hex(32) if idempotency_key is None else request_id(principal, idempotency_key)
        async with self._fleet.lock(app):
            self._fleet.definitions.app(app)
            if (outcome := self._fleet.outcomes.get(request)) is not None:
                return self._known(outcome, digest), False
            name = derived_name(app, request) if name is None else name
            record = self._new(app, name, spec, principal.limited)
            outcome = OutcomeRecord(request, digest, record.created_at, app, name)
            kept = None if idempotency_key is None else outcome
            supervisor = await self._fleet.add(record, kept, by={"principal": principal.name})
        return await self._begun(supervisor), True

    def _known(self, outcome: OutcomeRecord, digest: str) -> Instance:
        """What an earlier request under the same Idempotency-Key has made."""
        if outcome.instance is None:
            raise Conflict("the request under this Idempotency-Key was cancelled", "use a new key")
        if outcome.digest != digest:
            raise Conflict("this Idempotency-Key was used for another request", "use a new key")
        if outcome.ended:
            made = f"{outcome.app}:{outcome.instance}"
            raise Conflict(f"{made} was created under this Idempotency-Key, and has been deleted since",
                           "use a new key to create another")  # fmt: skip
        return self.get(outcome.app, outcome.instance)

    def _new(self, app: str, name: Any, spec: Mapping[str, Any], limited: bool) -> InstanceRecord:
        """The record of a new instance; every fault of its name and of its spec at once. Denied."""
        definitions = self._fleet.definitions
        fault = (
            name_fault(name, "/name", "instance name")
            if isinstance(name, str)
            else Fault("/name", f"{name!r:.60} is not text")
        )
        faults = [fault] if fault else []
        raw = dict(spec)
        try:
            raw = accept(spec, {})
            merged = definitions.effective(definitions.app(app), raw)
            if not fault:
                self._fleet.order.check({Key(app, name): merged})
        except Invalid as invalid:
            faults += invalid.faults
        if faults:
            raise Invalid(faults)
        if limited:
            self._check_peer(merged)
        key = Key(app, name)
        self._fleet.check_room(key)
        return InstanceRecord(key, raw, 1, self._fleet.world.wall())

    async def put(
        self, app: str, name: str, spec: Any, match: int | None = None, new: bool = False, limited: bool = False
    ) -> tuple[Instance, bool]:
        """The instance, and whether it is new, as with `new` it must be. `limited`: as a limited principal; Denied."""
        given = _object(spec)
        async with self._fleet.lock(app):
            self._fleet.definitions.app(app)
            supervisor = self._fleet.find(Key(app, name))
            expect(supervisor.record if supervisor else None, match)
            if new:
                expect_new(supervisor)
            created = supervisor is None
            if supervisor is None:
                supervisor = await self._fleet.add(self._new(app, name, given, limited))
            else:
                _check_open(supervisor)
                await self._write(supervisor, accept(given, dict(supervisor.record.spec)), limited)
        return await self._begun(supervisor), created

    async def patch(
        self, app: str, name: str, patch: Any, match: int | None = None, restart: bool = False, limited: bool = False
    ) -> Instance:
        async with self._fleet.lock(app):
            supervisor = self._fleet.get(app, name)
            expect(supervisor.record, match)
            _check_open(supervisor)
            await self._write(supervisor, patched(dict(supervisor.record.spec), patch), limited)
        if restart and supervisor.spec.wanted is Wanted.UP:
            supervisor.restart()
            await supervisor.begun()
        return await self._begun(supervisor)

    async def _write(self, supervisor: Supervisor, raw: Mapping[str, Any], limited: bool) -> None:
        if limited:
            definitions = self._fleet.definitions
            self._check_peer(supervisor.spec, definitions.effective(definitions.app(supervisor.key.app), raw))
        await self._fleet.write(supervisor, raw)

    def _check_peer(self, *specs: Spec) -> None:
        """Denied where other branches may not have one of these run here."""
        faults = [fault for spec in specs for fault in self._fleet.definitions.peer_faults(spec)]
        if faults:
            raise Denied("; ".join(dict.fromkeys(fault.detail for fault in faults)), faults[0].hint)

    async def edit(self, app: str, name: str, change: Callable[[], Mapping[str, Any]]) -> None:
        """A patch that depends on what the spec is at that moment."""
        async with self._fleet.lock(app):
            supervisor = self._fleet.get(app, name)
            _check_open(supervisor)
            await self._fleet.write(supervisor, patched(dict(supervisor.record.spec), change()))

    async def delete(self, app: str, name: str, limited: bool = False) -> None:
        """Begins; it is gone when get() says so."""
        async with self._fleet.lock(app):
            supervisor = self._fleet.get(app, name)
            if limited:
                self._check_peer(supervisor.spec)
            _check_open(supervisor)
            check_deletable(self._fleet, supervisor.record)
            await self._fleet.begin_delete(supervisor)

    async def start(self, app: str, name: str) -> Instance:
        return await self._act(app, name, Wanted.UP, Supervisor.start)

    async def stop(self, app: str, name: str) -> Instance:
        return await self._act(app, name, Wanted.DOWN, Supervisor.stop)

    async def restart(self, app: str, name: str) -> Instance:
        """By its stop plan; one that does not run is started. StorageFailed where one that runs is left as it is."""
        return await self._act(app, name, Wanted.UP, Supervisor.restart)

    async def _act(self, app: str, name: str, wanted: Wanted, action: Callable[[Supervisor], None]) -> Instance:
        """What is wanted is remembered over the daemon's life, so it is committed first."""
        async with self._fleet.lock(app):
            supervisor = self._fleet.get(app, name)
            if self._fleet.stopping and wanted is Wanted.UP:
                raise Unavailable("this branch is stopping")
            if supervisor.record.deleting:
                raise Conflict(f"{supervisor.key} is being deleted")
            if supervisor.spec.wanted is not wanted:
                try:
                    await self._fleet.write(supervisor, {**supervisor.record.spec, "wanted": wanted.value})
                except StorageFailed as failure:
                    if wanted is Wanted.UP:
                        raise
                    # What fills the disk must be possible to stop.
                    action(supervisor)
                    raise StorageFailed(
                        f"{supervisor.key} is being stopped, but that is not remembered: {failure.detail}",
                        f"{failure.hint}; the next daemon starts it again",
                    ) from None
            action(supervisor)
        if action is Supervisor.restart:
            await supervisor.begun()
        return await self._begun(supervisor)

    async def signal(self, app: str, name: str, signal: str) -> Instance:
        """To the main process alone. Conflict where there is none."""
        supervisor = self._fleet.get(app, name)
        if signal.removeprefix("SIG") not in SIGNALS:
            raise Invalid([Fault("/signal", f"{signal[:20]!r} is not a signal", f"one of {', '.join(SIGNALS)}")])
        if not supervisor.signal(signal_number(signal)):
            raise Conflict(f"{supervisor.key} has no process", f"it is {supervisor.state}")
        return supervisor.view()

    async def wait(self, app: str, name: str, what: Literal["ready", "stopped", "gone"], seconds: float) -> bool:
        """True when it came to that within so many seconds; False then, and as soon as it cannot any more."""
        key = Key(app, name)
        supervisor = self._fleet.find(key)
        try:
            async with asyncio.timeout(seconds):
                while supervisor is not None and self._fleet.find(key) is supervisor:
                    if what == "ready" and (supervisor.ready or supervisor.state in (State.FATAL, State.EXITED)):
                        return supervisor.ready
                    if what == "stopped" and supervisor.settled:
                        return True
                    await supervisor.changed()
                return what != "ready"
        except TimeoutError:
            return False

    async def leaves(self, app: str, name: str, states: Collection[State], seconds: float) -> bool:
        """True when it is in none of these states, or gone; False where it is in one of them for so many seconds."""
        key = Key(app, name)
        supervisor = self._fleet.find(key)
        try:
            async with asyncio.timeout(seconds):
                while supervisor is not None and self._fleet.find(key) is supervisor and supervisor.state in states:
                    await supervisor.changed()
        except TimeoutError:
            return False
        return True

    def started_at(self, app: str, name: str) -> float | None:
        """When its last process was started, one that has ended too; seconds since 1970, None: not known."""
        return self._fleet.get(app, name).run.started_at

    async def _begun(self, supervisor: Supervisor) -> Instance:
        """The instance as it is once what was asked of it has begun."""
        await supervisor.idle()
        return supervisor.view()


def _check_open(supervisor: Supervisor) -> None:
    """FileOwned where a file defines it: what it is is said there alone. Whether it is wanted up, anybody may say."""
    if source := supervisor.record.source:
        raise FileOwned(f"{supervisor.key} is defined in {source}", FILE_CURE)


def _object(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise Invalid([Fault("", f"a spec is an object, not {type(body).__name__}")])
    return dict(body)
