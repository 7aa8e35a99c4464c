"""Messages between branches: statements, and questions with their answers and deadlines.

Over the bus and the seal. What does not open, does not decode, or is too much is dropped and counted by its reason;
what a message means is said by those who serve its kind.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from branchd.branch.ports import Bus, BusState, Claim
from branchd.branch.tasks import Tasks
from branchd.core.errors import Invalid, NoAnswer, NoRoute
from branchd.core.peers import Address, inbox
from branchd.wire import json
from branchd.wire.decode import decode
from branchd.wire.mesh import KINDS, Message, sound
from branchd.wire.portions import LONGEST_MESSAGE
from branchd.wire.sealing import Path, Rejected, Seal

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=Message)

#: questions that are worked on at one time; more are dropped, and their askers' deadlines tell them
MOST_AT_WORK = 2000

#: seconds that keys are asked where the broker does not tell that nobody holds them
GATHER = 0.25

Statement = Callable[[Address, Any], None]
Question = Callable[[Address, Any], Awaitable[Message | None]]


class Link:
    def __init__(self, bus: Bus, seal: Seal, me: Address) -> None:
        self.me = me
        self.dropped: Counter[str] = Counter()  #: messages, by why
        self.tasks = Tasks("answering")
        self._bus = bus
        self._seal = seal
        self._statements: dict[type, Statement] = {}
        self._questions: dict[type, Question] = {}
        self._on_state: list[Callable[[BusState], None]] = []
        self._waiting: dict[str, Callable[[Address, Message], None]] = {}
        self._closing = False

    # Who does what with messages; told before open()

    def hear(self, kind: type[M], what: Callable[[Address, M], None]) -> None:
        self._statements[kind] = what

    def serve(self, kind: type[M], answer: Callable[[Address, M], Awaitable[Message | None]]) -> None:
        """None: no answer is given. An error of it is reported, and gives none either."""
        self._questions[kind] = answer

    def on_state(self, what: Callable[[BusState], None]) -> None:
        """Called after each change of the connection."""
        self._on_state.append(what)

    # Life

    async def open(self) -> None:
        await self._bus.open(self._received, self._state)

    async def close(self) -> None:
        self._closing = True  # what still comes in while it leaves is not begun
        await self.tasks.end()
        await self._bus.close()

    @property
    def state(self) -> BusState:
        return self._bus.state

    @property
    def connected(self) -> bool:
        return self._bus.state.connected

    @property
    def definite(self) -> bool:
        """Whether it is told for sure when nobody holds a key."""
        return self._bus.definite

    # Sending

    def broadcast(self, statement: Message) -> None:
        """To all branches, this one too; lost while there is no connection."""
        self._bus.broadcast(self._seal.seal(Path.BROADCAST, "", _pack(statement)))

    async def tell(self, to: Address, statement: Message) -> None:
        """NoRoute, Unavailable."""
        await self._post(to, _pack(statement))

    async def ask(self, to: Address, question: Message, timeout: float) -> Message:
        """The answer. NoRoute, NoAnswer, or Unavailable where there is no connection."""
        async with _Asked(self, to) as asked:
            await self._post(to, _pack(question, ask=asked.number))
            return (await asked.first(timeout, f"branch {to.id} does not answer"))[1]

    async def ask_key(
        self, key: str, question: Message, timeout: float, claim: Claim | None = None
    ) -> tuple[Address, Message]:
        """The first answer of who holds the key, and who that is. NoRoute, NoAnswer, Unavailable."""
        async with _Asked(self) as asked:
            await self._post_key(key, _pack(question, ask=asked.number), claim)
            try:
                return await asked.first(timeout if self.definite else GATHER, f"who holds {key} does not answer")
            except NoAnswer:
                if self.definite:
                    raise
                raise NoRoute(f"nobody answers for {key}") from None

    async def gather(self, key: str, question: Message, seconds: float = GATHER) -> list[tuple[Address, Message]]:
        """All answers of those who hold the key within so many seconds; none where nobody does. Unavailable."""
        async with _Asked(self) as asked:
            try:
                await self._post_key(key, _pack(question, ask=asked.number), None)
            except NoRoute:
                return []
            return await asked.all(seconds)

    async def routed(self, key: str, statement: Message) -> bool:
        """Whether somebody holds the key: for sure only where the bus is definite. Unavailable."""
        try:
            await self._post_key(key, _pack(statement), None)
        except NoRoute:
            return False
        return True

    async def bind(self, *keys: str) -> None:
        """Unavailable."""
        await self._bus.bind(keys)

    async def unbind(self, *keys: str) -> None:
        await self._bus.unbind(keys)

    async def claim(self, name: str) -> Claim:
        """Conflict where somebody else is claiming it now; Unavailable."""
        return await self._bus.claim(name)

    async def _post(self, to: Address, body: bytes) -> None:
        key = inbox(to.id)
        if not await self._bus.send(key, self._seal.seal(Path.SEND, _to(to), body)):
            raise NoRoute(f"branch {to.id} is not connected")

    async def _post_key(self, key: str, body: bytes, claim: Claim | None) -> None:
        path, send = (Path.SEND, self._bus.send) if claim is None else (Path.CLAIM, claim.send)
        if not await send(key, self._seal.seal(path, key, body)):
            raise NoRoute(f"nobody holds {key}")

    # Receiving

    def _state(self, state: BusState) -> None:
        for what in self._on_state:
            what(state)

    def _received(self, key: str, message: bytes | None) -> None:
        if message is None or len(message) > LONGEST_MESSAGE:
            self.dropped["oversized"] += 1
            return
        try:
            opened = self._seal.open(_to(self.me) if key == inbox(self.me.id) else key, message)
            self._take(opened.sender, json.loads(opened.body))
        except Rejected as rejected:
            self.dropped[rejected.reason] += 1
        except (Invalid, ValueError, KeyError, TypeError) as error:
            self.dropped["garbage"] += 1
            log.debug("message dropped", error=f"{type(error).__name__}: {error}"[:500])

    def _take(self, sender: Address, parcel: Any) -> None:
        kind = KINDS[parcel["kind"]]
        message: Message = decode(kind, parcel["body"])
        if not sound(message):
            self.dropped["invalid"] += 1
        elif "to" in parcel:
            answered = self._waiting.get(parcel["to"])
            if answered is None:
                self.dropped["late"] += 1
            else:
                answered(sender, message)
        elif "ask" in parcel:
            self._answer(sender, str(parcel["ask"]), self._questions[kind], message)
        else:
            self._hear(sender, self._statements[kind], message)

    def _hear(self, sender: Address, what: Statement, statement: Message) -> None:
        try:
            what(sender, statement)
        except Exception as error:  # noqa: BLE001 - a bad one must not end the reading, nor count as garbage
            self.tasks.report(error)

    def _answer(self, sender: Address, number: str, answer: Question, question: Message) -> None:
        if self._closing:
            return
        if len(self.tasks) >= MOST_AT_WORK:
            self.dropped["too many"] += 1
            return

        async def work() -> None:
            reply = await answer(sender, question)
            if reply is not None:
                await self._post(sender, _pack(reply, to=number))

        self.tasks.begin(work())


class _Asked:
    """One question under way. Its number is drawn, so that nobody answers who did not get it."""

    def __init__(self, link: Link, of: Address | None = None) -> None:
        """`of`: whose answer counts; None: of whoever holds the key."""
        self.number = secrets.token_hex(8)
        self._link = link
        self._of = of
        self._answers: asyncio.Queue[tuple[Address, Message]] = asyncio.Queue()

    async def __aenter__(self) -> "_Asked":
        self._link._waiting[self.number] = self._answered
        return self

    async def __aexit__(self, *_: object) -> None:
        del self._link._waiting[self.number]

    def _answered(self, sender: Address, message: Message) -> None:
        if self._of is not None and sender != self._of:
            self._link.dropped["impostor"] += 1
        else:
            self._answers.put_nowait((sender, message))

    async def first(self, timeout: float, silence: str) -> tuple[Address, Message]:
        try:
            return await asyncio.wait_for(self._answers.get(), timeout)
        except TimeoutError:
            raise NoAnswer(silence) from None

    async def all(self, seconds: float) -> list[tuple[Address, Message]]:
        answers = []
        try:
            async with asyncio.timeout(seconds):
                while True:
                    answers.append(await self._answers.get())
        except TimeoutError:
            return answers


def _to(address: Address) -> str:
    return f"{address.id}/{address.boot}"


def _pack(message: Message, **about: str) -> bytes:
    return json.dumps({"kind": type(message).__name__, "body": message, **about})
