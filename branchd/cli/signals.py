"""The signals of the daemon: which ask it to end, and how, and where they go while one image of it follows another."""

import asyncio
import signal
from collections.abc import Callable

import structlog

from branchd.adapters.held_signals import hold_signals, let_signals
from branchd.branch.ending import Ending, Endings

#: of the loop, till what came before a signal was held back has been handled: its byte is read, then its handler called
TURNS = 5

log = structlog.get_logger("branchd")


class Signals:
    """Handles them from its making on. TERM and INT run the stop plans, HUP reloads, QUIT lets go.

    To be made before anything is started: signals that the image before held back are let through by it, and what is
    started earlier would have them held back for good.
    """

    def __init__(self, endings: Endings) -> None:
        self._endings = endings
        self.kill: Callable[[], None] | None = None  #: what a second INT does
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, endings.ask, Ending.RELOAD)
        loop.add_signal_handler(signal.SIGQUIT, endings.ask, Ending.LEAVE)
        # What a recipe for another supervisor sends is no reason to end. Not SIG_IGN: what we start would inherit that.
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, _ignore, number)
        let_signals()

    async def hold(self) -> None:
        """When a reload has closed everything, so that nothing can be started any more: they wait for the next image.

        What came too late for this one is said to that one.
        """
        await asyncio.get_running_loop().shutdown_default_executor()  # its threads would take them
        hold_signals()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        late = {Ending.STOP: signal.SIGTERM, Ending.LEAVE: signal.SIGQUIT}
        if self._endings.chosen in late:
            signal.raise_signal(late[self._endings.chosen])

    def _stop(self, number: int) -> None:
        if self._endings.chosen is Ending.STOP and number == signal.SIGINT and self.kill is not None:
            log.warning("killing what still runs")
            self.kill()
        self._endings.ask(Ending.STOP)


def _ignore(number: signal.Signals) -> None:
    log.info("signal without a meaning here", signal=number.name)
