"""Asking programs how they are, over HTTP, TCP and by other programs: the port Prober.

https is asked without looking at the certificate: it is asked whether the program answers, not who it is.
"""

import asyncio
import ssl
from collections.abc import Callable
from functools import cached_property

from branchd.adapters.dialing import Failed, dial, request
from branchd.adapters.errands import Errands
from branchd.core.spec import Probe
from branchd.core.values import Launch

#: probes over the network at a time; each waits for its answer most of the time, and takes a descriptor
AT_ONCE = 100


class LocalProber:
    def __init__(self, errands: Errands) -> None:
        self._errands = errands
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def ask(self, probe: Probe, launch: Launch | None, begins: Callable[[], None]) -> str | None:
        """SpawnFailed, besides."""
        if launch is not None:
            return await self._errands.run(launch, probe.timeout, begins=begins)
        async with self._slots:
            begins()
            try:
                async with asyncio.timeout(probe.timeout):
                    if probe.http is not None:
                        return await self._get(probe.http)
                    await _connect(probe.tcp or "")
                    return None
            except TimeoutError:
                return f"no answer within {probe.timeout:g} s"
            except Failed as failure:
                return str(failure)

    async def _get(self, url: str) -> str | None:
        status = await request("GET", url, self._tls)
        return None if 200 <= status < 400 else f"answered {status}"

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context


async def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    _, writer = await dial(host.strip("[]"), int(port))
    writer.close()
