"""Methods of the door: declared once at their function, from which the table, their help and their signature are made.

What may be called is what stands in that table, under the whole name; no attribute of any object is ever looked up by a
name that a client sent.
"""

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from branchd.api.door.faults import Fault, RpcError
from branchd.branch.own_log import OwnLog
from branchd.branch.service import Service
from branchd.core.access import Principal, Scope
from branchd.core.value import Value

T = TypeVar("T")


class Door(Value):
    """What methods work with; one a request."""

    service: Service
    own_log: OwnLog
    principal: Principal
    #: waits for it, unless the client goes or the server stops before: None
    during: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]

    async def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """RpcError where the server stops meanwhile."""
        waited: T | None = await self.during(work)
        if waited is None:
            raise RpcError(Fault.SHUTDOWN_STATE)
        return waited


class Form(Value):
    """A type of XML-RPC, and what is taken for it."""

    name: str
    parse: Callable[[Any], Any]  #: ValueError


class Param(Value):
    form: Form
    name: str
    about: str
    needed: bool = True


def _string(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError(given)
    return given


def _int(given: Any) -> int:
    if not isinstance(given, int | str):  # supervisord takes digits too
        raise ValueError(given)
    return int(given)


def _boolean(given: Any) -> bool:
    if not isinstance(given, int):
        raise ValueError(given)
    return bool(given)


def _array(given: Any) -> list[Any]:
    if not isinstance(given, list):
        raise ValueError(given)
    return given


STRING = Form("string", _string)
INT = Form("int", _int)
BOOLEAN = Form("boolean", _boolean)
ARRAY = Form("array", _array)

#: a number may come as one
SIGNAL = Form("string", lambda given: str(given) if isinstance(given, int) else _string(given))

NAME = Param(STRING, "name", "The name of the process: group:name, or name where the two are the same.")
GROUP = Param(STRING, "name", "The name of the group.")

Function = Callable[..., Awaitable[Any]]


class Method(Value):
    names: tuple[str, ...]  #: the first is its own, the others are older ones for the same
    scope: Scope
    returns: str  #: the type of XML-RPC
    params: tuple[Param, ...]
    function: Function

    @property
    def help(self) -> str:
        """With tags, as supervisord writes them."""
        lines = [(self.function.__doc__ or "").strip(), ""]
        lines += [f"@param {param.form.name} {param.name} {param.about}" for param in self.params]
        return "\n".join([*lines, f"@return {self.returns} result"])

    @property
    def signature(self) -> list[str]:
        return [self.returns, *(param.form.name for param in self.params)]

    def read(self, given: tuple[Any, ...]) -> list[Any]:
        """The arguments, as the function takes them. RpcError."""
        needed = sum(param.needed for param in self.params)
        if not needed <= len(given) <= len(self.params):
            raise RpcError(Fault.INCORRECT_PARAMETERS, f"{self.names[0]} takes {len(self.params)}")
        try:
            return [param.form.parse(one) for param, one in zip(self.params, given, strict=False)]
        except ValueError:
            types = ", ".join(param.form.name for param in self.params)
            raise RpcError(Fault.INCORRECT_PARAMETERS, f"{self.names[0]} takes {types}") from None


class Methods:
    """A module's methods; calling it makes the decorator."""

    def __init__(self) -> None:
        self._methods: list[Method] = []

    def __iter__(self) -> Iterator[Method]:
        return iter(self._methods)

    def __call__(self, *names: str, scope: Scope, returns: str, params: tuple[Param, ...] = ()) -> Callable[[T], T]:
        def declare(function: Any) -> Any:
            self._methods.append(Method(names, scope, returns, params, function))
            return function

        return declare
