"""What tests of several rooms share: brokers. Missing software fails a test in words; nothing is skipped."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.rabbitmq import RabbitMQ

# What begins us may ignore them (nohup, a background job), and then all that we begin would: a Ctrl-C is not heard.
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# No example has a time (200 ms are hypothesis's own), and every run has the same ones: what explores is marked `soak`.
settings.register_profile("branchd", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("branchd")


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """One that runs for all tests: use names of your own in it."""
    broker = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def own_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """One for tests that stop, kill or restart it; it runs."""
    broker = RabbitMQ(tmp_path_factory.mktemp("own-rabbitmq"))
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()
