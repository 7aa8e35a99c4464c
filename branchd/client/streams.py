"""Server-sent events (the HTML standard, 9.2.6) out of the bytes of an answer."""

from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    event: str
    data: str
    id: str


async def lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Each whole line without its end; a last one that has none is dropped, for it is not whole."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")


async def messages(pieces: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    event, data, last = "message", list[str](), ""
    async for line in lines(pieces):
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                event = value
            case "data":
                data.append(value)
            case "id":
                last = value
            case "" if not line:
                if data:
                    yield Message(event, "\n".join(data), last)
                event, data = "message", []
            case _:
                pass  # a comment that keeps the connection alive, or a field that we do not use
