"""Dies where the test says: a function in a process of its own, killed by KILL after a number of its steps."""

import os
import signal
from collections.abc import Callable
from types import ModuleType
from typing import Any

#: the calls of os that change something on disk
STEPS = frozenset({"open", "mkdir", "rename", "unlink", "copy_file_range", "fdatasync", "fsync", "ftruncate"})

#: bytes that one copy_file_range copies at most, so that there are steps within a copy
PIECE = 40_000


class _CountedOs:
    """The os module, counting."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in STEPS:
            return real

        def counted(*arguments: Any, **named: Any) -> Any:
            if name == "copy_file_range":
                source, target, count, *offsets = arguments
                arguments = source, target, min(count, PIECE), *offsets
            result = real(*arguments, **named)
            self._step()
            return result

        return counted


def dies_after(steps: int, modules: list[ModuleType], work: Callable[[], object]) -> bool:
    """Runs work() in a fork that is killed once that many steps of the modules are done; False when it came to its end.

    A step is a call of os that changes something, or of fallocate.
    """
    process = os.fork()
    if process == 0:
        try:
            _count(steps, modules)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _count(steps: int, modules: list[ModuleType]) -> None:
    left = steps

    def step() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    step()
    for module in modules:
        module.os = _CountedOs(step)  # type: ignore[attr-defined]
        if hasattr(module, "fallocate"):
            real = module.fallocate

            def fallocate(*arguments: int, real: Callable[..., bool] = real) -> bool:
                done = real(*arguments)
                step()
                return done

            module.fallocate = fallocate  # type: ignore[attr-defined]
