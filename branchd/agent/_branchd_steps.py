"""What branchd does inside a Celery worker: two bootsteps, the facts gathered, the commands carried out.

How messages travel stands in _branchd_line.py. Nothing in here may raise into the worker. Facts are read in the line's
thread, commands are carried out in the worker's own loop.
"""

import contextlib
import functools
import json
import os
import re
import time
from typing import Any, Callable, Dict, List, Optional

import celery
from _branchd_line import Answer, Line, Message  # type: ignore[import-not-found]
from celery import bootsteps, signals
from celery.worker import state

#: ids of running tasks in one heartbeat
TASKS = 20
#: characters of one text in a message
TEXT = 500
#: a password in a URL, wherever it is quoted; up to the last @, since not everybody escapes the one in a password
PASSWORD = re.compile(r"(\w+://[^\s:/@]*:)[^\s\"]+@")


class Impossible(Exception):
    """A command that cannot be carried out, in words for the operator."""


def text(error: BaseException) -> str:
    return PASSWORD.sub(r"\1**@", str(error) or repr(error))[:TEXT]


def harmless(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def guarded(*args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(Exception):
            method(*args, **kwargs)

    return guarded


class Agent:
    """What is known of one worker, and what can be done to it."""

    def __init__(self, worker: Any, path: str) -> None:
        self.line = Line(path, self.facts, self.command)
        self._worker = worker
        self._consumer: Any = None
        self._phase = "boot"
        self._error: Optional[str] = None  #: the broker's last, until it is connected
        self._ticked: Optional[float] = None  #: when the loop was last seen to run, on the monotonic clock
        self._ticking = False  #: a tick waits for its turn in the loop
        self._waiting: Dict[int, Answer] = {}  #: commands that wait for their turn in the loop
        self._counter = 0
        self._known: Message = {}

    # what the steps tell

    def consumer_starts(self, consumer: Any) -> None:
        """The broker is connected; the worker is up when its loop runs, which is after it has begun to consume."""
        self._consumer = consumer
        self._ticking = False  # a tick of the connection before may have been lost with it
        consumer.call_soon(self._up)

    def consumer_stops(self) -> None:
        if self._phase == "up":
            self._change("down")
        for number in list(self._waiting):
            self._settle(number, error="the connection to the broker was lost")

    def stops(self) -> None:
        self._change("stopping")

    def broker_failed(self, error: BaseException) -> None:
        before, self._error = self._error, text(error)
        if before != self._error:
            self.line.beat()

    def _up(self) -> None:
        self._ticked = time.monotonic()
        self._error = None
        if self._phase != "stopping":
            self._change("up")

    def _change(self, phase: str) -> None:
        self._phase = phase
        self.line.beat()

    # what the daemon hears

    def facts(self) -> Message:
        # If the worker changes while we look at it: what was known before, with the phase of now.
        with contextlib.suppress(Exception):
            self._known = self._look()
        return dict(self._known, type="heartbeat", phase=self._phase)

    def _look(self) -> Message:
        worker, up = self._worker, self._phase == "up"
        running = tuple(state.active_requests)
        scaler = getattr(worker, "autoscaler", None)
        if up and not self._ticking:
            self._ticking = True
            self._consumer.call_soon(self._tick)
        return {
            "pool": pool_name(worker.pool_cls),
            "loop_age": round(time.monotonic() - self._ticked, 3) if up and self._ticked else None,
            "active": len(running),
            "total": state.all_total_count[0],
            "tasks": [str(request.id)[:255] for request in running[:TASKS]],
            "autoscale": [scaler.min_concurrency, scaler.max_concurrency] if scaler else None,
            "processes": pool_size(worker.pool),
            "queues": self._queues() if up else [],
            "celery": celery.__version__,
            "error": self._error,
        }

    def _tick(self) -> None:
        self._ticked = time.monotonic()
        self._ticking = False

    def _queues(self) -> List[str]:
        consumer = self._consumer.task_consumer
        return [queue.name for queue in consumer.queues if consumer.consuming_from(queue.name)] if consumer else []

    # what the daemon has done

    def command(self, command: Message, answer: Answer) -> None:
        operation = command.get("op")
        carry_out = self._operations().get(str(operation))
        if carry_out is None:
            answer(error="the agent knows no command %.40r" % (operation,))
        elif self._phase != "up":
            answer(error="not connected to the broker")
        else:
            self._counter += 1
            self._waiting[self._counter] = answer
            self._consumer.call_soon(self._carry_out, self._counter, carry_out, command)

    def _operations(self) -> Dict[str, Callable[[Message], Any]]:
        return {
            "declare": self._declare,
            "add_consumer": self._add_consumer,
            "cancel_consumer": self._cancel_consumer,
            "autoscale": self._autoscale,
            "stats": self._stats,
        }

    def _carry_out(self, number: int, carry_out: Callable[[Message], Any], command: Message) -> None:
        if number not in self._waiting:
            return  # refused when the connection was lost, but still in the loop's queue
        try:
            value = carry_out(command)
        except Exception as error:
            self._settle(number, error=text(error))
        else:
            self._settle(number, ok=value)
        self.line.beat()

    def _settle(self, number: int, **outcome: Any) -> None:
        answer = self._waiting.pop(number, None)
        if answer is not None:
            answer(**outcome)

    def _declare(self, command: Message) -> str:
        queue = declaration(self._worker.app, command["queue"])
        # On a channel of its own: the broker closes the channel of a declaration that does not match what it has,
        # and with the channel that tasks come by, the worker would end.
        channel = self._consumer.connection.channel()
        try:
            queue(channel).declare()
        finally:
            with contextlib.suppress(Exception):
                channel.close()
        return str(queue.name)

    def _add_consumer(self, command: Message) -> str:
        name = self._declare(command)
        self._worker.app.amqp.queues.add(declaration(self._worker.app, command["queue"]))
        self._consumer.add_task_queue(name)
        if not self._consumer.task_consumer.consuming_from(name):
            raise Impossible("the worker does not consume from %s" % name)
        return name

    def _cancel_consumer(self, command: Message) -> str:
        name = str(command["name"])
        self._consumer.cancel_task_queue(name)
        return name

    def _autoscale(self, command: Message) -> Message:
        scaler = getattr(self._worker, "autoscaler", None)
        if scaler is None:
            raise Impossible("the worker was not started with autoscale")
        least, most = command["min"], command["max"]
        if not (type(least) is int and type(most) is int and 0 <= least <= most and most >= 1):
            raise Impossible("autoscale wants 0 <= min <= max and max >= 1, not min %r and max %r" % (least, most))
        scaler.update(max=most, min=least)
        self._worker.pool.maintain_pool()  # now, where the autoscaler would get to it in 5 seconds
        return {"min": least, "max": most, "processes": pool_size(self._worker.pool)}

    def _stats(self, command: Message) -> Any:
        # Celery tells how it is connected with all transport options, and those may hold secrets.
        connection = self._consumer.connection
        broker = {"uri": connection.as_uri(), "transport": connection.transport_cls}
        stats = dict(self._worker.stats(), broker=broker)
        return json.loads(PASSWORD.sub(r"\1**@", json.dumps(stats, default=str)), parse_constant=str)


def pool_name(pool: Any) -> str:
    name = str(pool if isinstance(pool, str) else pool.__module__).rpartition(".")[2]
    return "threads" if name == "thread" else name


def pool_size(pool: Any) -> int:
    """How many tasks can run now: of prefork the processes that there are, not those that there should be."""
    processes = getattr(getattr(pool, "_pool", None), "_pool", None)
    return len(processes) if isinstance(processes, list) else int(pool.num_processes)


def declaration(app: Any, wanted: Message) -> Any:
    """The kombu queue that is wanted; a bare name is the application's own queue, or one as Celery makes by default."""
    name = wanted["name"]
    exchange, key, options = wanted.get("exchange"), wanted.get("routing_key"), wanted.get("options") or {}
    kind = wanted.get("exchange_type") or "direct"
    scratch = app.amqp.Queues({})  # makes queues as the application's settings say, without adding them to it
    if exchange is None and key is None and not options and kind == "direct":
        if name in app.amqp.queues:
            return app.amqp.queues[name]
        try:
            return scratch[name]
        except KeyError:
            raise Impossible("the application has no queue %s, and task_create_missing_queues is off" % name) from None
    exchange = name if exchange is None else exchange
    return scratch.add(name, exchange=exchange, exchange_type=kind, routing_key=key, **options)


def steps(agent: Agent) -> Any:
    class BranchdWorkerStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Starts the line before the broker is asked for."""

        requires = ("celery.worker.components:Timer", "celery.worker.components:Pool")

        @harmless
        def start(self, worker: Any) -> None:
            agent.line.start()

        @harmless
        def close(self, worker: Any) -> None:
            agent.stops()

    class BranchdConsumerStep(bootsteps.StartStopStep):  # type: ignore[misc]
        """Tells when the worker is connected to its broker and when it is not."""

        requires = ("celery.worker.consumer.tasks:Tasks", "celery.worker.consumer.control:Control")

        def __init__(self, consumer: Any, **kwargs: Any) -> None:
            super().__init__(consumer, **kwargs)
            listen_to_failures(consumer, agent)

        @harmless
        def start(self, consumer: Any) -> None:
            agent.consumer_starts(consumer)

        @harmless
        def stop(self, consumer: Any) -> None:
            agent.consumer_stops()

    return BranchdWorkerStep, BranchdConsumerStep


@harmless
def listen_to_failures(consumer: Any, agent: Agent) -> None:
    """Celery only logs why it cannot connect: stands between it and the two places where it learns that."""
    ensure_connected, on_loss = consumer.ensure_connected, consumer.on_connection_error_after_connected

    def ensure(connection: Any) -> Any:
        ensure_connection = connection.ensure_connection

        def with_note(errback: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            def note(error: BaseException, interval: float) -> Any:
                agent.broker_failed(error)
                return errback(error, interval)

            return ensure_connection(note, *args, **kwargs)

        connection.ensure_connection = with_note
        return ensure_connected(connection)

    def lost(error: BaseException) -> Any:
        agent.broker_failed(error)
        return on_loss(error)

    consumer.ensure_connected, consumer.on_connection_error_after_connected = ensure, lost


def install(variable: str, settings: str) -> None:
    """Hooks into the next worker; `settings` is what the environment variable held."""
    wanted = json.loads(settings)
    path, queues = str(wanted["socket"]), list(wanted["queues"])

    @harmless
    def on_worker_init(instance: Any = None, **_: Any) -> None:
        app = instance.app
        app.conf.broker_connection_max_retries = None
        app.conf.broker_connection_retry_on_startup = True
        setup_queues = instance.setup_queues

        def declared(include: Any, exclude: Any = None) -> None:
            # Not earlier: the application's own hooks may still change its queues.
            for queue in queues:
                with contextlib.suppress(Exception):
                    app.amqp.queues.add(declaration(app, queue))
            setup_queues(include, exclude)

        instance.setup_queues = declared
        worker_step, consumer_step = steps(Agent(instance, path))
        app.steps["worker"].add(worker_step)
        app.steps["consumer"].add(consumer_step)

    @harmless
    def on_shutdown(**_: Any) -> None:
        os.environ[variable] = settings  # HUP makes Celery start itself anew in this process: with an agent again

    signals.celeryd_init.connect(on_worker_init, weak=False)
    signals.worker_shutdown.connect(on_shutdown, weak=False)
