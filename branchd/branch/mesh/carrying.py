"""Requests of the API that are for another branch: carried there in a message, and answered there by its own API.

Both sides. The answer's first piece comes with its head; the rest stays where it is made until it is pulled, piece by
piece, so that nobody is sent more than he takes. Which branch a request is for, and what becomes of the answer, is the
business of who asks (branchd/api/forwarding.py).
"""

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress

import structlog
from msgspec import Struct, field

from branchd.branch.mesh.link import Link
from branchd.branch.mesh.neighbours import ANSWER_WITHIN
from branchd.branch.ports import Door, Served
from branchd.core.access import Principal, Scope
from branchd.core.errors import BranchdError, Denied, Fault, Invalid, NoAnswer, NoRoute, Unavailable
from branchd.core.peers import Address
from branchd.core.value import Value
from branchd.wire.mesh import CHUNK, Carried, HangUp, Message, Piece, Pull, Reply, Unserved

log = structlog.get_logger(__name__)

#: headers of a request that travel, and those of an answer; what proves who asks does not
SENT = frozenset({"accept", "content-type", "if-match", "if-none-match", "idempotency-key", "last-event-id"})
RETURNED = frozenset({"content-type", "etag", "location", "retry-after", "allow"}) | {
    f"branchd-log-{what}" for what in ("offset", "next", "gap", "since", "cut")
}

#: carried requests that are answered here at one time, and of those the ones of one branch; each costs two descriptors
MOST, MOST_OF_ONE = 200, 64

#: beside them what is followed (logs, events): it may go on without end
MOST_FOLLOWED, MOST_FOLLOWED_OF_ONE = 150, 50

#: seconds in which an answer must begin; those who carry wait in slices that are shorter
BEGIN_WITHIN = 60.0

#: seconds that a pull waits for something to come
PATIENCE = 5.0

#: seconds without a pull, after which the rest is not made any more
IDLE = 30.0

#: bytes in which an answer is read here, and how many of them are kept for the next pull
_PART = 64 << 10
_KEPT = CHUNK // _PART


class Carrier:
    def __init__(self, link: Link, door: Door, peer_scope: Scope, name_of: Callable[[str], str]) -> None:
        """`peer_scope`: the most that anybody may do here from elsewhere. `name_of`: of the branch with that id."""
        self._link = link
        self._door = door
        self._peer_scope = peer_scope
        self._name_of = name_of
        self._open: dict[str, _Answer] = {}
        link.serve(Carried, self._serve)
        link.serve(Pull, self._pull)
        link.hear(HangUp, self._hang_up)

    def close(self) -> None:
        """Ends what is answered for others."""
        for stream in list(self._open):
            self._end(stream)

    # Asking

    @asynccontextmanager
    async def carry(
        self,
        to: Address,
        principal: Principal,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        timeout: float = ANSWER_WITHIN,
    ) -> AsyncIterator[Served]:
        """The answer of that branch's API, as far as it is read within the block.

        NoRoute: it is not there. Unavailable: it was not asked, or did not begin. NoAnswer: it was asked, and what came
        of it is not known; while the body is read: the rest does not come. Denied for what was carried here itself, and
        Invalid for headers that cannot travel.
        """
        carried = _parcel(principal, method, target, headers, body)
        async with self._answer(lambda: self._ask(to, carried, timeout)) as (_, served):
            yield served

    @asynccontextmanager
    async def carry_key(
        self,
        key: str,
        principal: Principal,
        method: str,
        target: str,
        headers: Mapping[str, str],
        timeout: float = ANSWER_WITHIN,
    ) -> AsyncIterator[tuple[Address, Served]]:
        """The same of the branch that holds the key, and which it is: one way there and back, for what changes nothing.

        A change must be carried to a branch that was found before: a key may have found a new holder meanwhile. NoRoute
        also where nobody tells who holds a key.
        """
        if not self._link.definite:
            raise NoRoute(f"who holds {key} has to be asked for")
        carried = _parcel(principal, method, target, headers, b"")
        async with self._answer(lambda: self._ask_key(key, carried, timeout)) as found:
            yield found

    async def _ask(self, to: Address, carried: Carried, timeout: float) -> tuple[Address, Message]:
        try:
            return to, await self._link.ask(to, carried, timeout)
        except NoAnswer:
            raise NoAnswer(f"branch {self._name_of(to.id)} does not answer") from None

    async def _ask_key(self, key: str, carried: Carried, timeout: float) -> tuple[Address, Message]:
        try:
            return await self._link.ask_key(key, carried, timeout)
        except NoAnswer:
            raise NoAnswer(f"the branch that has {key.partition('.')[2]} does not answer") from None

    @asynccontextmanager
    async def _answer(
        self, ask: Callable[[], Awaitable[tuple[Address, Message]]]
    ) -> AsyncIterator[tuple[Address, Served]]:
        if not self._link.connected:
            raise Unavailable(f"this branch has no connection to the others: {self._link.state.why}")
        try:
            owner, answer = await ask()
        except Unavailable as error:  # it may have been sent before the connection failed
            raise NoAnswer(error.detail, error.hint) from None
        if isinstance(answer, Unserved):
            raise Unavailable(f"branch {self._name_of(owner.id)}: {answer.detail}")
        if not isinstance(answer, Reply) or not 200 <= answer.status < 600:
            raise NoAnswer(f"branch {self._name_of(owner.id)} does not answer as this version does")
        headers = {name: text for name, text in _chosen(answer.headers, RETURNED).items() if text.isprintable()}
        rest = _Rest(self._link, owner, answer.stream)
        pieces = rest.pieces(answer.body)
        try:
            yield owner, Served(answer.status, headers, pieces)
        finally:
            await pieces.aclose()
            await rest.hang_up()

    # Answering

    async def _serve(self, sender: Address, carried: Carried) -> Reply | Unserved | None:
        if self._full(sender, MOST, MOST_OF_ONE, followed=False):
            return Unserved("too many requests of other branches are being answered; try again")
        if not carried.target.startswith("/"):
            return Unserved("the request has no path")
        body = _bytes(carried.body)
        name = self._name_of(sender.id)
        scope = carried.scope if self._peer_scope.includes(carried.scope) else self._peer_scope
        principal = Principal(carried.principal, scope, via=name, via_id=sender.id, asked=carried.scope)
        stream = secrets.token_hex(16)
        answer = _Answer(sender)
        self._open[stream] = answer
        answer.task = asyncio.get_running_loop().create_task(self._work(answer, stream, principal, carried, body))
        reply: Reply | Unserved | None = None
        try:
            async with asyncio.timeout(BEGIN_WITHIN):
                reply = await answer.reply
        except TimeoutError:
            log.warning("a carried request is given up: no answer has begun", target=carried.target[:200])
        finally:
            if isinstance(reply, Reply) and reply.stream is not None:
                self._await_pull(stream)
            else:
                self._end(stream)
        return reply

    def _full(self, sender: Address, most: int, most_of_one: int, *, followed: bool) -> bool:
        """Who follows much must not keep anybody from asking."""
        alike = [answer for answer in self._open.values() if answer.followed is followed]
        return len(alike) >= most or sum(answer.asker.id == sender.id for answer in alike) >= most_of_one

    async def _work(self, answer: "_Answer", stream: str, principal: Principal, carried: Carried, body: bytes) -> None:
        """Has it answered here, and hands the answer over."""
        headers = _chosen(carried.headers, SENT)
        door = self._door.serve(principal, carried.method, carried.target, headers, body)
        try:
            async with door as served:
                begun, whole = b"", False
                if "content-length" in served.headers:
                    begun, whole = await _first(served.body)
                elif self._full(answer.asker, MOST_FOLLOWED, MOST_FOLLOWED_OF_ONE, followed=True):
                    answer.reply.set_result(Unserved("too much is being followed from other branches; try again"))
                    return
                else:
                    answer.followed = True  # it comes as it happens, and may never end
                head, returned = _text(begun[:CHUNK]), _chosen(served.headers, RETURNED)
                answer.reply.set_result(Reply(served.status, returned, head, None if whole else stream))
                await answer.put(begun[CHUNK:])
                if not whole:
                    async for part in served.body:
                        await answer.put(part)
                    await answer.parts.put(_End(broken=False))
        except BranchdError as error:
            if answer.reply.done():
                await answer.parts.put(_End(broken=True))
            elif isinstance(error, NoAnswer):
                log.warning("a carried request has no answer", target=carried.target[:200], reason=error.detail)
                answer.reply.set_result(None)  # it may have been done: nothing that is true can be told
            else:
                answer.reply.set_result(Unserved(error.detail))
        except Exception as error:
            if not answer.reply.done():
                answer.reply.set_exception(error)  # told by the link
                return
            log.exception("a carried answer broke off", target=carried.target[:200])
            await answer.parts.put(_End(broken=True))

    async def _pull(self, sender: Address, pull: Pull) -> Piece:
        answer = self._open.get(pull.stream)
        if answer is None or answer.asker != sender:
            return Piece("", end=True, broken=True)
        if answer.idle is not None:
            answer.idle.cancel()
        data, end = await answer.take()
        if end is None:
            self._await_pull(pull.stream)
            return Piece(_text(data), end=False)
        self._end(pull.stream)
        return Piece(_text(data), end=True, broken=end.broken)

    def _hang_up(self, sender: Address, hang_up: HangUp) -> None:
        answer = self._open.get(hang_up.stream)
        if answer is not None and answer.asker == sender:
            self._end(hang_up.stream)

    def _await_pull(self, stream: str) -> None:
        if (answer := self._open.get(stream)) is not None:
            answer.idle = asyncio.get_running_loop().call_later(IDLE, self._end, stream)

    def _end(self, stream: str) -> None:
        answer = self._open.pop(stream, None)
        if answer is not None:
            if answer.idle is not None:
                answer.idle.cancel()
            if answer.task is not None:
                answer.task.cancel()


class _End(Value):
    broken: bool


class _Answer(Struct, eq=False):
    """One that is made here for another branch."""

    asker: Address
    reply: asyncio.Future[Reply | Unserved | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    parts: asyncio.Queue[bytes | _End] = field(default_factory=lambda: asyncio.Queue(_KEPT))
    task: asyncio.Task[None] | None = None
    idle: asyncio.TimerHandle | None = None
    followed: bool = False

    async def put(self, data: bytes) -> None:
        """Waits until there is room for it."""
        for start in range(0, len(data), _PART):
            await self.parts.put(data[start : start + _PART])

    async def take(self) -> tuple[bytes, _End | None]:
        """What is there, at most CHUNK bytes; waits for the first of it, and not for ever."""
        data = bytearray()
        try:
            async with asyncio.timeout(PATIENCE):
                part = await self.parts.get()
        except TimeoutError:
            return b"", None
        while isinstance(part, bytes):
            data += part
            if len(data) > CHUNK - _PART or self.parts.empty():
                return bytes(data), None
            part = self.parts.get_nowait()
        return bytes(data), part


class _Rest:
    """What another branch has yet to give of an answer."""

    def __init__(self, link: Link, owner: Address, stream: str | None) -> None:
        self._link = link
        self._owner = owner
        self._stream = stream

    async def pieces(self, first: str) -> AsyncGenerator[bytes, None]:
        """NoAnswer."""
        if first:
            yield _bytes(first)
        while self._stream is not None:
            try:
                piece = await self._link.ask(self._owner, Pull(self._stream), PATIENCE + ANSWER_WITHIN)
            except (NoRoute, Unavailable) as error:
                raise NoAnswer(f"the rest of the answer is lost: {error.detail}") from None
            if not isinstance(piece, Piece):
                raise NoAnswer("the rest of the answer is lost")
            if piece.end:
                self._stream = None
            if piece.body:
                yield _bytes(piece.body)
            if piece.broken:
                raise NoAnswer("the rest of the answer is lost: it broke off where it is made")

    async def hang_up(self) -> None:
        if self._stream is not None:
            with suppress(NoRoute, Unavailable):
                await self._link.tell(self._owner, HangUp(self._stream))


async def _first(body: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """What fills the first piece, and whether that is all."""
    begun = bytearray()
    async for part in body:
        begun += part
        if len(begun) > CHUNK:
            return bytes(begun), False
    return bytes(begun), True


def _parcel(principal: Principal, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Carried:
    if principal.via is not None:
        raise Denied("what another branch carried here is not carried further", f"ask branch {principal.via} again")
    sent = _chosen(headers, SENT)
    if wrong := [name for name, text in sent.items() if not (text.isascii() and text.isprintable())]:
        hint = "printable ASCII, where another branch is to answer"
        raise Invalid([Fault(f"{name}:", "is not valid", hint) for name in wrong])
    return Carried(method, target, sent, _text(body), principal.name, principal.scope)


def _chosen(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    return {name.lower(): text for name, text in headers.items() if name.lower() in names}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    """NoAnswer: what is not understood is no answer, and gets none."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise NoAnswer("it is not encoded as this version does") from None
