"""A program: asks a daemon again and again, over its unix socket and TCP, and tells what was not answered.

    python load.py REQUESTS_A_SECOND UNIX_PATH HOST:PORT (one of the two may be "-")

It asks until its standard input ends, and then prints {"answered": N, "failures": {why: N}, "slowest": seconds}, JSON.
Half of the clients connect for each request; the others keep their connection as long as they are let.
"""

import asyncio
import json
import sys
import time
from collections import Counter

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

#: seconds after which a request counts as not answered
PATIENCE = 20.0


class Client:
    def __init__(self, address: str, keeps: bool, tally: "Tally") -> None:
        self._address = address
        self._keeps = keeps
        self._tally = tally
        self._line: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await self._exchange()
        except (OSError, EOFError, TimeoutError) as error:
            self._tally.failures[f"{self._address}: {error!r}"] += 1
            self._hang_up()
            return
        self._tally.slowest = max(self._tally.slowest, time.monotonic() - begun)
        if not answer.startswith("HTTP/1.1 200 "):
            self._tally.failures[f"{self._address}: {answer.splitlines()[0]}"] += 1
        else:
            self._tally.answered += 1
        if not self._keeps or "\nconnection: close" in answer.lower():
            self._hang_up()

    async def _exchange(self) -> str:
        if self._line is None:
            host, _, port = self._address.rpartition(":")
            self._line = await (
                asyncio.open_connection(host, int(port)) if host else asyncio.open_unix_connection(self._address)
            )
        reader, writer = self._line
        writer.write(REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line for line in head.lower().splitlines() if line.startswith("content-length:"))
        await reader.readexactly(int(length.split()[1]))
        return head

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line[1].close()
            self._line = None


class Tally:
    def __init__(self) -> None:
        self.answered = 0
        self.slowest = 0.0
        self.failures: Counter[str] = Counter()


async def repeat(client: Client, every: float, over: asyncio.Event) -> None:
    while not over.is_set():
        begun = time.monotonic()
        await client.ask()
        await asyncio.sleep(max(0.0, every - (time.monotonic() - begun)))


async def main(rate: int, *addresses: str) -> None:
    tally, over = Tally(), asyncio.Event()
    asked = [address for address in addresses if address != "-"]
    # Each asks some ten times a second; those who wait while nobody answers do not keep the others from connecting.
    clients = [Client(asked[number % len(asked)], number // len(asked) % 2 == 1, tally) for number in range(rate // 10)]
    work = [asyncio.create_task(repeat(client, 0.1, over)) for client in clients]
    await asyncio.to_thread(sys.stdin.read)
    over.set()
    await asyncio.gather(*work)
    print(json.dumps({"answered": tally.answered, "failures": tally.failures, "slowest": tally.slowest}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
