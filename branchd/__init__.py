"""branchd: a decentralized supervisor for Celery workers and any other program."""

__version__ = "0.1.0"
