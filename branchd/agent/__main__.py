"""Celery's own command line with branchd's agent hooked in; whatever goes wrong with the agent, the worker starts.

Only the entry stands here: what it hooks in is in _branchd_steps.py, the line to the daemon in _branchd_line.py.
"""

import os
import sys

#: set by the daemon, in the words of branchd/wire/agent.py; absent when somebody starts this by hand
SETTINGS = "BRANCHD_AGENT"


def hook() -> None:
    """Makes the next Celery worker of this process one with an agent; does nothing where that is impossible."""
    folder = os.path.dirname(os.path.abspath(__file__))
    settings = os.environ.pop(SETTINGS, None)  # what the worker's tasks start must not inherit it
    try:
        if settings is None:
            return
        import celery  # noqa: PLC0415 - not where there are no settings

        celery.maybe_patch_concurrency()  # as Celery's main does: what is imported before gevent's patching misses it
        import _branchd_steps  # type: ignore[import-not-found]  # noqa: PLC0415 - only now, see above

        _branchd_steps.install(SETTINGS, settings)
    except Exception:
        pass  # a worker without an agent is worth more than no worker: the daemon sees that the agent is silent
    finally:
        # Python put this folder first, where Celery's own command has nothing of the user's.
        sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != folder]


if __name__ == "__main__":
    hook()
    from celery.__main__ import main

    main()
