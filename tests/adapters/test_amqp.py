"""The bus over a real RabbitMQ: the suite of all buses, and brokers that refuse, hang, die and come back."""

import asyncio
import os
import random
import secrets
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import amqp
import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from msgspec.structs import replace

from branchd.adapters.amqp import AmqpBus
from branchd.core.brokers import Broker, parse
from branchd.core.errors import Unavailable
from branchd.wire.portions import LONGEST_MESSAGE
from tests.adapters.conformance_bus import ONE, SOON, TWO, BreakConnection, DefiniteBusConformance, Join, Member, NewBus
from tests.free_port import free_port
from tests.rabbitmq import RabbitMQ
from tests.waiting import until, until_sync

#: seconds; so that what waits for heartbeats is soon there
HEARTBEAT = 2

#: seconds for a broker that comes back, or is found dead
LATER = 60.0


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    with blockbuster_ctx("branchd.adapters") as blocking:
        blocking.functions["os.stat"].deactivate()  # of a traceback's source files
        yield blocking


@pytest.fixture
def hood() -> str:
    return secrets.token_hex(4)


def at(*urls: str) -> tuple[Broker, ...]:
    brokers = parse(";".join(urls))
    assert isinstance(brokers, tuple)
    return brokers


@pytest.fixture
async def enter(hood: str) -> AsyncIterator[Join]:
    """Members by id and URLs, connected or not."""
    members = []

    async def enter(branch: str, *urls: str) -> Member:
        members.append(member := Member(branch, AmqpBus(at(*urls), hood, branch, HEARTBEAT)))
        await member.open()
        return member

    yield enter
    for member in members:
        await member.bus.close()


@pytest.fixture
def channel(rabbitmq: RabbitMQ) -> Iterator[amqp.Channel]:
    """Somebody else's at the same broker."""
    with amqp.Connection(f"127.0.0.1:{rabbitmq.port}") as connection:
        yield connection.channel()


async def off(member: Member, *words: str) -> str:
    """Waits till it is not connected for a reason of these words, and gives the reason."""
    await until(lambda: all(word in member.bus.state.why for word in words), LATER, f"it says {words}")
    assert not member.bus.state.connected
    return member.bus.state.why


async def talk(one: Member, two: Member) -> None:
    """Both ways, by both exchanges."""
    for speaker, listener in ((one, two), (two, one)):
        listener.heard.clear()
        assert await speaker.bus.send(listener.inbox, b"you")
        speaker.bus.broadcast(b"all")
        await until(lambda: {(listener.inbox, b"you"), ("", b"all")} <= set(listener.heard), SOON)  # noqa: B023


class TestAmqpBus(DefiniteBusConformance):
    @pytest.fixture
    def new_bus(self, rabbitmq: RabbitMQ, hood: str) -> NewBus:
        return lambda branch: AmqpBus(at(rabbitmq.url), hood, branch, HEARTBEAT)

    @pytest.fixture
    def break_connection(self) -> BreakConnection:
        async def break_connection(bus: AmqpBus) -> None:
            for wire in bus._wires:
                wire._connection.abort()

        return break_connection

    async def test_it_says_of_which_cluster_it_is_and_not_the_password(self, one: Member, rabbitmq: RabbitMQ) -> None:
        assert one.bus.state.cluster == f"test{rabbitmq.port}@" + one.bus.state.cluster.partition("@")[2]
        assert one.bus.state.where == f"amqp://127.0.0.1:{rabbitmq.port}/%2F"

    async def test_each_of_many_sends_under_way_has_its_own_answer(self, one: Member, two: Member) -> None:
        keys = [random.choice([two.inbox, "i.web:nobody"]) for _ in range(5000)]
        answers = await asyncio.gather(*(one.bus.send(key, b"x" * 300) for key in keys))
        assert answers == [key == two.inbox for key in keys]
        await until(lambda: len(two.heard) == sum(answers), SOON)

    async def test_a_thousand_keys_are_bound_and_unbound(self, one: Member, two: Member) -> None:
        keys = [f"i.web:{number}" for number in range(1000)]
        await two.bus.bind(keys)
        assert all(await asyncio.gather(*(one.bus.send(key, b"") for key in keys)))
        await two.bus.unbind(keys)
        assert not any(await asyncio.gather(*(one.bus.send(key, b"") for key in keys)))

    async def test_a_claim_that_nobody_waits_for_any_more_is_given_up(self, one: Member, two: Member) -> None:
        asked = asyncio.create_task(one.bus.claim("web:one"))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await one.bus.claim("web:other")  # behind the one that was given up
        await (await two.bus.claim("web:one")).release()

    async def test_its_threads_end_with_it(self, one: Member) -> None:
        assert len([each for each in threading.enumerate() if ONE in each.name]) == 2
        await one.bus.close()
        await until(lambda: not [each for each in threading.enumerate() if ONE in each.name])

    async def test_what_the_loop_does_not_take_waits_at_the_broker(
        self, one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("branchd.adapters.amqp_wire.MOST_WAITING", 10)
        assert all(await asyncio.gather(*(one.bus.send(two.inbox, b"") for _ in range(1000))))
        await until(lambda: len(two.heard) == 1000, SOON)

    async def test_nor_does_it_keep_more_bytes_than_the_loop_is_to_get(
        self, one: Member, two: Member, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("branchd.adapters.amqp_wire.MOST_BYTES_WAITING", 1 << 20)
        for _ in range(200):
            one.bus.broadcast(b"x" * 100_000)
        consuming, publishing = one.bus._wires
        until_sync(lambda: not publishing._outbox and not publishing._unconfirmed, SOON)  # and the loop takes nothing
        until_sync(lambda: consuming._loop.size > 1 << 20, SOON)
        assert consuming._loop.size < 2 << 20
        for member in (one, two):
            await until(lambda: len(member.heard) == 200, SOON)  # noqa: B023
        assert consuming._loop.size == 0

    async def test_a_message_that_is_too_long_is_told_of_and_not_kept(self, one: Member, two: Member) -> None:
        await one.bus.send(two.inbox, b"x" * (LONGEST_MESSAGE + 1))
        await one.bus.send(two.inbox, b"x" * LONGEST_MESSAGE)
        await two.has_heard((two.inbox, None), (two.inbox, b"x" * LONGEST_MESSAGE))

    async def test_a_second_branch_of_one_id_is_told_after_three_heartbeats(self, one: Member, enter: Join) -> None:
        second = await enter(ONE)
        await off(second, ONE, "waiting")
        await off(second, ONE, "new id")
        assert one.bus.state.connected


class TestTls:
    """Through something that speaks TLS in front of the broker, as load balancers do."""

    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        file = tmp_path / "certificate.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
                *("-keyout", file, "-out", tmp_path / "signed.pem"),
            ],
            check=True,
            capture_output=True,
        )
        file.write_text(file.read_text() + (tmp_path / "signed.pem").read_text())
        return file

    @pytest.fixture
    async def port(self, rabbitmq: RabbitMQ, certificate: Path) -> AsyncIterator[int]:
        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await reader.read(1 << 16):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", rabbitmq.port)
            await asyncio.gather(copy(reader, broker_writer), copy(broker_reader, writer))

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context) as server:
            yield server.sockets[0].getsockname()[1]

    async def test_messages_of_all_sizes_come_through(self, port: int, certificate: Path, enter: Join) -> None:
        url = f"amqps://127.0.0.1:{port}?cacertfile={certificate}"
        one, two = [await (await enter(branch, url)).connected() for branch in (ONE, TWO)]
        bodies = [bytes(size) for size in (0, 300, 70_000, 4 << 20)] + [b"x" * 300] * 500
        assert all(await asyncio.gather(*(one.bus.send(two.inbox, body) for body in bodies)))
        await until(lambda: len(two.heard) == len(bodies), SOON)
        assert [body for _, body in two.heard] == bodies
        for member in (one, two):
            await member.bus.close()

    async def test_a_certificate_that_is_not_trusted_is_refused(self, port: int, enter: Join) -> None:
        one = await enter(ONE, f"amqps://u:hush@127.0.0.1:{port}")
        assert "hush" not in await off(one, "not trusted", "?cacertfile=FILE")

    async def test_a_certificate_of_another_name_is_refused(self, port: int, certificate: Path, enter: Join) -> None:
        one = await enter(ONE, f"amqps://127.0.0.2:{port}?cacertfile={certificate}")
        await off(one, "127.0.0.2")

    async def test_amqp_without_tls_is_told_from_it(self, port: int, enter: Join) -> None:
        await off(await enter(ONE, f"amqp://127.0.0.1:{port}"), f"port {port}", "closed the connection")


class TestRefusals:
    """What is in the way is told in words that say what to do; a password is in none of them."""

    async def refused(self, enter: Join, url: str, *words: str) -> Member:
        one = await enter(ONE, url)
        why = await off(one, *words)
        assert "hush" not in why + one.bus.state.where
        return one

    async def test_a_wrong_password(self, rabbitmq: RabbitMQ, enter: Join) -> None:
        url = f"amqp://guest:hush@127.0.0.1:{rabbitmq.port}//"
        await self.refused(enter, url, "'guest'", "password", "correct the broker's URL")

    async def test_a_missing_vhost(self, rabbitmq: RabbitMQ, enter: Join) -> None:
        await self.refused(enter, f"amqp://127.0.0.1:{rabbitmq.port}/nowhere", "no vhost 'nowhere'", "create it")

    async def test_nobody_listens(self, enter: Join) -> None:
        await self.refused(enter, f"amqp://u:hush@127.0.0.1:{free_port()}", "nothing listens", "start the broker")

    async def test_an_unknown_host(self, enter: Join) -> None:
        await self.refused(enter, "amqp://u:hush@nowhere.invalid", "'nowhere.invalid' is not known")

    async def test_tls_where_there_is_none(self, rabbitmq: RabbitMQ, enter: Join) -> None:
        await self.refused(enter, f"amqps://u:hush@127.0.0.1:{rabbitmq.port}", "no TLS", "is that port the one")

    async def test_a_missing_file_of_tls(self, rabbitmq: RabbitMQ, enter: Join, tmp_path: Path) -> None:
        url = f"amqps://127.0.0.1:{rabbitmq.port}?cacertfile={tmp_path / 'none.pem'}"
        await self.refused(enter, url, "none.pem", "No such file")

    async def test_something_else_listens(self, enter: Join) -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(8)
            writer.write(b"220 mail.example ESMTP, and so on\r\n" * 10)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await self.refused(enter, f"amqp://u:hush@127.0.0.1:{port}", "does not speak AMQP")

    async def test_nobody_answers(self, enter: Join) -> None:
        async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with await asyncio.start_server(keep_silent, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            one = await self.refused(enter, f"amqp://u:hush@127.0.0.1:{port}", "does not answer in time")
            async with asyncio.timeout(SOON):
                await one.bus.close()

    async def test_an_exchange_with_other_arguments(
        self, rabbitmq: RabbitMQ, channel: amqp.Channel, enter: Join, hood: str
    ) -> None:
        channel.exchange_declare(f"branchd.{hood}.all", "direct", durable=True, auto_delete=False)
        await self.refused(enter, rabbitmq.url, f"branchd.{hood}.all", "delete that exchange", "name the neighbourhood")

    async def test_an_alternate_exchange_and_its_end(
        self, rabbitmq: RabbitMQ, channel: amqp.Channel, enter: Join, hood: str
    ) -> None:
        channel.queue_declare(hood, exclusive=True)
        channel.queue_bind(hood, "amq.fanout")
        pattern = f"^branchd\\.{hood}\\.direct$"
        await asyncio.to_thread(
            *(rabbitmq.control, "set_policy", hood, pattern, '{"alternate-exchange": "amq.fanout"}'),
            *("--apply-to", "exchanges"),
        )
        one = await self.refused(
            enter, rabbitmq.url, "an alternate exchange swallows returns", f"branchd.{hood}.direct", "take the policy"
        )
        await asyncio.to_thread(rabbitmq.control, "clear_policy", hood)
        await one.connected()

    async def test_a_user_without_permissions(self, rabbitmq: RabbitMQ, enter: Join, hood: str) -> None:
        await asyncio.to_thread(rabbitmq.control, "add_user", hood, "hush")
        url = f"amqp://{hood}:hush@127.0.0.1:{rabbitmq.port}//"
        await self.refused(enter, url, f"permit the user '{hood}' the vhost '/'")
        await asyncio.to_thread(rabbitmq.control, "set_permissions", hood, "^other", "^other", "^other")
        await self.refused(enter, url, f"permit the user '{hood}' to configure, write and read")


class TestTrouble:
    async def test_tries_that_fail_leave_no_descriptors(self, enter: Join, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("branchd.adapters.amqp.LONGEST", 0.01)
        tries = 0

        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal tries
            tries += 1
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await enter(ONE, f"amqp://127.0.0.1:{port}")
            await until(lambda: tries > 3, SOON)
            before = len(os.listdir("/proc/self/fd"))
            await until(lambda: tries > 40, SOON)
            assert len(os.listdir("/proc/self/fd")) < before + 20

    @pytest.mark.parametrize("end", ["stop", "kill"])
    async def test_a_broker_that_ends_and_comes_back_is_found_again(
        self, own_rabbitmq: RabbitMQ, enter: Join, end: str
    ) -> None:
        one, two = [await (await enter(branch, own_rabbitmq.url)).connected() for branch in (ONE, TWO)]
        await two.bus.bind(["i.web:one"])
        await asyncio.to_thread(getattr(own_rabbitmq, end))
        for member in (one, two):
            await off(member, "nothing listens")
            with pytest.raises(Unavailable, match="nothing listens"):
                await member.bus.send(two.inbox, b"")
        await asyncio.to_thread(own_rabbitmq.start)
        for member in (one, two):
            await until(lambda: member.bus.state.connected, LATER, "the broker is found again")  # noqa: B023
        await talk(one, two)
        assert not await one.bus.send("i.web:one", b"")

    async def test_a_broker_that_hangs_is_left_and_found_again(self, own_rabbitmq: RabbitMQ, enter: Join) -> None:
        one, two = [await (await enter(branch, own_rabbitmq.url)).connected() for branch in (ONE, TWO)]
        own_rabbitmq.pause()
        try:
            with pytest.raises(Unavailable):
                async with asyncio.timeout(SOON):
                    await one.bus.send(two.inbox, b"")
            await off(one, "does not answer in time")
            await until(lambda: not two.bus.state.connected, LATER, "heartbeats are missed")
        finally:
            own_rabbitmq.resume()
        for member in (one, two):
            await until(lambda: member.bus.state.connected, LATER, "the broker is found again")  # noqa: B023
        await talk(one, two)

    async def test_a_broker_that_hangs_holds_up_no_end(self, own_rabbitmq: RabbitMQ, enter: Join) -> None:
        one = await (await enter(ONE, own_rabbitmq.url)).connected()
        own_rabbitmq.pause()
        try:
            waiting = [asyncio.create_task(one.bus.send("i.web:one", b"x" * 1_000_000)) for _ in range(50)]
            binding = asyncio.create_task(one.bus.bind(["i.web:one"]))
            await asyncio.sleep(0)
            async with asyncio.timeout(SOON):
                await one.bus.close()
                results = await asyncio.gather(*waiting, binding, return_exceptions=True)
            assert {type(result) for result in results} == {Unavailable}
            await until(lambda: not [each for each in threading.enumerate() if ONE in each.name], SOON)
        finally:
            own_rabbitmq.resume()

    async def test_a_broker_without_memory_keeps_its_connections_and_refuses_messages_and_claims(
        self, own_rabbitmq: RabbitMQ, enter: Join
    ) -> None:
        one, two = [await (await enter(branch, own_rabbitmq.url)).connected() for branch in (ONE, TWO)]
        claim = await one.bus.claim("web:held")
        await asyncio.to_thread(own_rabbitmq.control, "set_vm_memory_high_watermark", "0.00001")
        one.bus.broadcast(b"the broker notices who sends")
        with pytest.raises(Unavailable, match="memory or disk"):
            await one.bus.send(two.inbox, b"late")
        with pytest.raises(Unavailable, match="memory or disk"):
            await one.bus.claim("web:one")
        with pytest.raises(Unavailable, match="memory or disk"):
            await one.bus.send(two.inbox, b"late")  # which takes longer than the heartbeats of both connections
        assert [state.connected for state in one.states] == [True]
        third = await enter("3" * 32, own_rabbitmq.url)
        await off(third, "memory or disk is full", "alarms")
        await asyncio.to_thread(own_rabbitmq.control, "set_vm_memory_high_watermark", "absolute", "512MB")
        await until(lambda: third.bus.state.connected, LATER)
        await talk(one, two)
        await claim.release()
        await (await two.bus.claim("web:held")).release()
        assert [state.connected for state in one.states] == [True]

    async def test_failover_urls_of_two_clusters_are_refused(
        self, rabbitmq: RabbitMQ, own_rabbitmq: RabbitMQ, enter: Join
    ) -> None:
        one = await (await enter(ONE, own_rabbitmq.url, rabbitmq.url)).connected()
        assert one.bus.state.where.endswith(f":{own_rabbitmq.port}/%2F")
        await asyncio.to_thread(own_rabbitmq.kill)
        await off(one, str(rabbitmq.port), f"test{rabbitmq.port}@", f"test{own_rabbitmq.port}@", "one cluster")
        await asyncio.to_thread(own_rabbitmq.start)
        await until(lambda: one.bus.state.connected, LATER)
        assert one.bus.state.where.endswith(f":{own_rabbitmq.port}/%2F")

    async def test_the_next_url_is_tried_where_one_is_dead(self, rabbitmq: RabbitMQ, enter: Join) -> None:
        one = await (await enter(ONE, f"amqp://127.0.0.1:{free_port()}", rabbitmq.url)).connected()
        assert one.bus.state == replace(one.bus.state, why="", where=str(at(rabbitmq.url)[0]))
