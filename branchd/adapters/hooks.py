"""Telling a command or a URL of an event: the port Teller. A URL's certificate is checked, and no redirect followed."""

import asyncio
import ssl
from functools import cached_property

from branchd.adapters.dialing import Failed, request
from branchd.adapters.errands import Errands
from branchd.core.spec import Hook
from branchd.core.values import Launch


class LocalTeller:
    def __init__(self, errands: Errands, certificates: str | None = None) -> None:
        """`certificates`: a file of those that are trusted; None: the machine's own."""
        self._errands = errands
        self._certificates = certificates

    async def tell(self, hook: Hook, launch: Launch | None, event: bytes, timeout: float) -> str | None:
        """SpawnFailed, Unavailable, besides."""
        if launch is not None:
            return await self._errands.run(launch, timeout, event)
        try:
            async with asyncio.timeout(timeout):
                status = await request("POST", hook.url or "", self._tls, event)
        except TimeoutError:
            return f"no answer within {timeout:g} s"
        except Failed as failure:
            return str(failure)
        if 300 <= status < 400:
            return f"answered {status}; redirects are not followed"
        return None if 200 <= status < 300 else f"answered {status}"

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._certificates)
