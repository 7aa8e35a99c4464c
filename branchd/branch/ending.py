"""How a daemon ends, and who asked it to: one value, for signals, the API and whoever else may ask.

What an end consists of is done by who awaits it: the composition root. Nothing is stopped here.
"""

import asyncio
from enum import Enum, auto

from branchd.core.errors import BranchdError, Conflict


class Ending(Enum):
    STOP = auto()  #: everything stops by its stop plan, and the daemon exits with 0
    RELOAD = auto()  #: the code and the configuration of now take its place: same pid, same workers
    LEAVE = auto()  #: the daemon exits with 0; what runs goes on, for the next one to adopt


class Endings:
    """Of one daemon. The first STOP or LEAVE stays; a RELOAD that was not carried out yields to either.

    A reload that turns out to be impossible is refused, and the daemon goes on.
    """

    def __init__(self) -> None:
        self.chosen: Ending | None = None  #: RELOAD only once it was granted
        self._asked = asyncio.Event()
        self._verdict: asyncio.Future[None] | None = None  #: of the reload that is being tried

    def ask(self, ending: Ending) -> None:
        """Returns at once."""
        if ending is not Ending.RELOAD:
            if self.chosen not in (Ending.STOP, Ending.LEAVE):
                self.chosen = ending
                self.refuse(Conflict("this branch is ending"))
        elif self.chosen is None and self._verdict is None:
            self._verdict = asyncio.get_running_loop().create_future()
            self._verdict.add_done_callback(lambda verdict: verdict.exception())  # nobody need wait for it
        self._asked.set()

    async def reload(self) -> None:
        """Asks for a reload, and returns when it will be carried out; Conflict with the reason where it will not."""
        self.ask(Ending.RELOAD)
        if self._verdict is None:
            raise Conflict("this branch is ending")
        await asyncio.shield(self._verdict)

    async def next(self) -> Ending:
        """What was asked for; a RELOAD is then to be granted or refused."""
        while True:
            await self._asked.wait()
            if self.chosen is not None:
                return self.chosen
            if self._verdict is not None:
                return Ending.RELOAD
            self._asked.clear()

    async def firm(self) -> None:
        """Returns when nothing but the end can follow: while a reload is tried, it need not be tried any longer."""
        while self.chosen is None:
            self._asked.clear()
            await self._asked.wait()

    def grant(self) -> None:
        """There is no way back for the reload that next() told of."""
        if self.chosen is None and self._verdict is not None:
            self.chosen = Ending.RELOAD
            self._verdict.set_result(None)
            self._verdict = None

    def refuse(self, error: BranchdError) -> None:
        """The daemon goes on as it was."""
        if self._verdict is not None:
            self._verdict.set_exception(error)
            self._verdict = None
