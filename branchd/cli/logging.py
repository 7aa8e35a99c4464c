"""The daemon's own log: one line an event on the standard error, for people and for journald alike."""

import logging
import sys
from typing import TextIO, cast

import structlog

from branchd.branch.own_log import OwnLog
from branchd.cli.config import LogLevel


class _Both:
    """The standard error and the end of the log in memory, as one file."""

    def __init__(self, own_log: OwnLog) -> None:
        self._own_log = own_log

    def write(self, text: str) -> int:
        self._own_log.write(text)
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def configure_logging(level: LogLevel, own_log: OwnLog) -> None:
    output = cast(TextIO, _Both(own_log))
    threshold = logging.getLevelNamesMapping()[level.value.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(output),
        cache_logger_on_first_use=True,
    )
    # What libraries have to say, asyncio's warnings among it, goes the same way.
    logging.basicConfig(stream=output, level=max(threshold, logging.WARNING), format="%(name)s: %(message)s")
