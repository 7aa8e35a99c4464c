"""The API's endpoints as methods: plain JSON values in and out, as /v1/openapi.json tells them.

No Values: a caller gets what the API said, also what a newer one adds. A list comes whole, its pages joined.
How the API is asked, and what an answer becomes, stands in asking.py.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from urllib.parse import quote

from branchd.client.asking import Asking, Object, parsed
from branchd.client.connection import endpoint
from branchd.client.streams import lines

#: seconds for an answer, beside those that it was asked to wait
TIMEOUT = 30.0

#: seconds more for an answer that tells whether other code starts
TRIAL = 60.0


class BranchdClient:
    """Talks to one branch at http://HOST:PORT, https://HOST:PORT or unix:PATH (ValueError). Holds no connection.

    at() and alone() give clients of one branch of the neighbourhood, or of this branch alone, in what they ask.
    Every method raises ApiProblem when the API says no, and Unreachable when no whole answer came. `wait` is how many
    seconds the answer may wait for what was asked to be done.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = TIMEOUT,
        branch: str | None = None,
        local: bool = False,
    ) -> None:
        """`branch` and `local`: as at() and alone()."""
        self.url = url
        self._asking = Asking(endpoint(url), token, timeout, branch, local)

    def at(self, branch: str) -> "BranchdClient":
        """One whose instances and events are those of that branch, by its name or id; what it creates is pinned there.

        Apps, queues of apps and tokens are of no branch: it cannot ask for them.
        """
        now = self._asking
        return BranchdClient(self.url, now.token, timeout=now.timeout, branch=branch, local=now.local)

    def alone(self) -> "BranchdClient":
        """One whose questions this branch answers without the others."""
        now = self._asking
        return BranchdClient(self.url, now.token, timeout=now.timeout, branch=now.branch, local=True)

    # who, where, whether

    async def whoami(self) -> Object:
        return await self._asking.object("GET", "/v1/whoami")

    async def healthy(self) -> bool:
        return await self._asking.holds("/healthz")

    async def ready(self) -> bool:
        return await self._asking.holds("/readyz")

    async def openapi(self) -> Object:
        return await self._asking.object("GET", "/v1/openapi.json")

    async def branches(self, *, fresh: bool = False) -> Object:
        """As they said last; `fresh`: as they are now."""
        return await self._asking.list("/v1/branches", {"fresh": "1"} if fresh else {})

    async def branch(self, name: str) -> Object:
        return await self._asking.object("GET", _path("branches", name))

    async def drain(self, name: str, *, pinned: bool = False) -> Object:
        """The operation, which operation() tells of. `pinned`: its pinned instances are stopped at the end."""
        query = {"pinned": "1"} if pinned else {}
        return await self._asking.object("POST", _path("branches", name, "actions", "drain"), query=query)

    async def undrain(self, name: str) -> Object:
        return await self._asking.object("POST", _path("branches", name, "actions", "undrain"))

    async def confirm(self, name: str) -> Object:
        """Those that vanished all at once are gone."""
        return await self._asking.object("POST", _path("branches", name, "actions", "confirm"))

    async def shutdown(self, name: str) -> Object:
        """Ends the daemon; only the branch that is asked can be."""
        return await self._asking.object("POST", _path("branches", name, "actions", "shutdown"))

    async def reload(self, name: str) -> Object:
        """Has the daemon take up the code and configuration of now, in place, once they are seen to start.

        Only the branch that is asked can be. ApiProblem with 409 says why they do not start.
        """
        return await self._asking.object("POST", _path("branches", name, "actions", "reload"), patience=TRIAL)

    async def operations(self) -> Object:
        return await self._asking.list("/v1/operations")

    async def operation(self, id: str) -> Object:
        return await self._asking.object("GET", _path("operations", id))

    async def cancel_operation(self, id: str) -> Object:
        return await self._asking.object("DELETE", _path("operations", id))

    async def doctor(self) -> Object:
        """{branch, findings}, the worst first."""
        return await self._asking.object("GET", "/v1/doctor")

    async def files(self) -> Object:
        """How the definitions in the branch's files differ from what was applied of them."""
        return await self._asking.object("GET", "/v1/files")

    async def update_files(self, apps: Sequence[str] = ()) -> Object:
        """Applies them; the operation. `apps`: only these."""
        return await self._asking.object("POST", "/v1/files/actions/update", query={"app": apps})

    async def tokens(self) -> Object:
        return await self._asking.list("/v1/tokens")

    async def create_token(self, name: str, scope: str, expires_in: float | None = None) -> Object:
        """The answer's `token` is shown this once. `expires_in` is in seconds."""
        body: Object = {"name": name, "scope": scope}
        if expires_in is not None:
            body["expires_in"] = expires_in
        return await self._asking.object("POST", "/v1/tokens", body)

    async def revoke_token(self, id: str) -> None:
        await self._asking.call("DELETE", _path("tokens", id))

    # apps and their queues

    async def apps(self) -> Object:
        return await self._asking.list("/v1/apps")

    async def app(self, app: str) -> Object:
        return await self._asking.object("GET", _path("apps", app))

    async def put_app(self, app: str, spec: Object, *, match: str | None = None) -> Object:
        """Creates or replaces. `match`: the ETag that it must still have."""
        return await self._asking.object("PUT", _path("apps", app), spec, match=match)

    async def patch_app(self, app: str, patch: Object, *, match: str | None = None, restart: bool = False) -> Object:
        """Merges (RFC 7396). `restart`: restarts the instances that the change concerns."""
        query = {"restart": "now"} if restart else {}
        return await self._asking.object("PATCH", _path("apps", app), patch, query=query, match=match)

    async def rolling_restart(self, app: str, names: Sequence[str] | None = None, *, outdated: bool = False) -> Object:
        """The operation: one branch's instances of the app, or these of them, are restarted one after the other.

        `outdated`: only those that run with something else than their spec says.
        """
        query: dict[str, str | Sequence[str]] = {} if names is None else {"instance": names}
        if outdated:
            query["outdated"] = "1"
        return await self._asking.object("POST", _path("apps", app, "actions", "restart"), query=query)

    async def delete_app(self, app: str, *, cascade: bool = False, patience: float = 0.0) -> None:
        """`cascade`: its instances too; it answers when they are gone, for which it has `patience` seconds more."""
        await self._asking.call(
            "DELETE", _path("apps", app), query={"cascade": "1"} if cascade else {}, patience=patience
        )

    async def publish_app(self, app: str) -> Object:
        """Makes the branch's own definition the neighbourhood's."""
        return await self._asking.object("POST", _path("apps", app, "actions", "publish"))

    async def adopt_app(self, app: str) -> Object:
        """Drops the branch's own definition for the neighbourhood's."""
        return await self._asking.object("POST", _path("apps", app, "actions", "adopt"))

    async def queues(self, app: str) -> Object:
        return await self._asking.list(_path("apps", app, "queues"))

    async def queue(self, app: str, queue: str) -> Object:
        return await self._asking.object("GET", _path("apps", app, "queues", queue))

    async def put_queue(self, app: str, queue: str, declaration: Object) -> Object:
        return await self._asking.object("PUT", _path("apps", app, "queues", queue), declaration)

    async def delete_queue(self, app: str, queue: str) -> None:
        await self._asking.call("DELETE", _path("apps", app, "queues", queue))

    # instances

    async def instances(self, app: str | None = None) -> Object:
        return await self._asking.list("/v1/instances" if app is None else _path("apps", app, "instances"))

    async def statuses(self) -> Object:
        """As instances(), without what was asked for: quicker where there are hundreds."""
        return await self._asking.list("/v1/status")

    async def instance(self, app: str, name: str) -> Object:
        return await self._asking.object("GET", _instance(app, name))

    async def create_instance(
        self, app: str, body: Object, *, key: str | None = None, wait: float | None = None
    ) -> Object:
        """`body` is a spec, with "name" or without. The same `key` (Idempotency-Key) creates once."""
        headers = {"Idempotency-Key": key} if key is not None else {}
        return await self._asking.object("POST", _path("apps", app, "instances"), body, headers=headers, wait=wait)

    async def create_instances(
        self, app: str, body: Object, count: int, *, key: str | None = None, wait: float | None = None
    ) -> Object:
        """So many of the same: {items, problems}, a problem for each that could not be made."""
        return await self.create_instance(app, {**body, "count": count}, key=key, wait=wait)

    async def put_instance(
        self, app: str, name: str, spec: Object, *, match: str | None = None, wait: float | None = None
    ) -> Object:
        return await self._asking.object("PUT", _instance(app, name), spec, match=match, wait=wait)

    async def patch_instance(
        self, app: str, name: str, patch: Object, *, match: str | None = None, restart: bool = False
    ) -> Object:
        query = {"restart": "now"} if restart else {}
        return await self._asking.object("PATCH", _instance(app, name), patch, query=query, match=match)

    async def delete_instance(self, app: str, name: str, *, wait: float | None = None) -> bool:
        """True when it is gone, False while its stop plan still runs."""
        return await self._asking.call("DELETE", _instance(app, name), wait=wait) == 204

    async def start(self, app: str, name: str, *, wait: float | None = None) -> Object:
        return await self._asking.object("POST", _instance(app, name, "actions", "start"), wait=wait)

    async def stop(self, app: str, name: str, *, wait: float | None = None) -> Object:
        return await self._asking.object("POST", _instance(app, name, "actions", "stop"), wait=wait)

    async def restart(self, app: str, name: str, *, wait: float | None = None) -> Object:
        return await self._asking.object("POST", _instance(app, name, "actions", "restart"), wait=wait)

    async def signal(self, app: str, name: str, signal: str) -> Object:
        return await self._asking.object("POST", _instance(app, name, "actions", "signal"), {"signal": signal})

    async def explain(self, app: str, name: str) -> Object:
        """How it was placed, or why it was not; 404 where no branch remembers."""
        return await self._asking.object("GET", _instance(app, name, "explain"))

    async def stats(self, app: str, name: str) -> Object:
        return await self._asking.object("GET", _instance(app, name, "stats"))

    # what a Celery worker does

    async def consumers(self, app: str, name: str) -> Object:
        return await self._asking.list(_instance(app, name, "queues"))

    async def add_consumer(self, app: str, name: str, queue: str) -> Object:
        return await self._asking.object("PUT", _instance(app, name, "queues", queue))

    async def cancel_consumer(self, app: str, name: str, queue: str) -> None:
        await self._asking.call("DELETE", _instance(app, name, "queues", queue))

    async def autoscale(self, app: str, name: str) -> Object:
        return await self._asking.object("GET", _instance(app, name, "autoscale"))

    async def set_autoscale(self, app: str, name: str, least: int, most: int) -> Object:
        return await self._asking.object("PUT", _instance(app, name, "autoscale"), {"min": least, "max": most})

    # what goes on

    async def logs(
        self,
        app: str,
        name: str,
        *,
        tail: int | None = None,
        stream: str = "stdout",
        follow: bool = False,
        since: str | None = None,
        grep: str | None = None,
        ignore_case: bool = False,
        offset: int | None = None,
        length: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """Lines as they were written, in pieces; then, when following, what comes, until the caller stops.

        `tail`: the last so many; 100, or with `since` or `offset` all. `since`: an RFC 3339 time, or "15m" for so long
        ago. `offset` and `length`: bytes, counted from the first that was ever written.
        """
        query = {"stream": stream}
        given = {"tail": tail, "since": since, "grep": grep, "offset": offset, "length": length}
        query |= {name: str(value) for name, value in given.items() if value is not None}
        query |= {name: "1" for name, on in (("follow", follow), ("ignore_case", ignore_case)) if on}
        async with self._asking.request(
            "GET", _instance(app, name, "logs"), query=query, accept="text/plain"
        ) as answer:
            async for piece in answer.pieces():
                yield piece

    async def events(
        self,
        after: int | None = None,
        *,
        tail: int | None = None,
        follow: bool = True,
        app: str | None = None,
        instance: str | None = None,
        types: Sequence[str] = (),
    ) -> AsyncGenerator[Object, None]:
        """What happens after the event with that id, or from the last `tail` on, or from now on: until the daemon ends.

        Without `follow` until now. {"type": "reset", "id": ...} comes first where what comes after `after` is no longer
        kept: from its id on nothing is left out. `types`: what a type may begin with.
        """
        query: dict[str, str | Sequence[str]] = {"follow": str(int(follow)), "type": types}
        given = {"after": after, "tail": tail, "app": app, "instance": instance}
        query |= {name: str(value) for name, value in given.items() if value is not None}
        async with self._asking.request("GET", "/v1/events", query=query, accept="application/x-ndjson") as answer:
            async for line in lines(answer.pieces()):
                yield parsed(answer, line)

    async def last_event(self) -> int:
        """The id of the newest event; 0 where there is none."""
        async with aclosing(self.events(tail=1, follow=False)) as stream:
            return max([int(event["id"]) async for event in stream], default=0)


def _path(*steps: str) -> str:
    return "/v1/" + "/".join(quote(step, safe="") for step in steps)


def _instance(app: str, name: str, *steps: str) -> str:
    return _path("apps", app, "instances", name, *steps)
