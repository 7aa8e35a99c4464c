"""The handlers, a module for each kind of thing: each maps a call to the service, and what it returns to an answer."""

from branchd.api.handlers import (
    apps,
    branch,
    celery,
    creation,
    events,
    files,
    instances,
    logs,
    operations,
    queues,
    tokens,
)

ROUTES = (
    *branch.route,
    *tokens.route,
    *apps.route,
    *queues.route,
    *files.route,
    *instances.route,
    *creation.route,
    *celery.route,
    *logs.route,
    *events.route,
    *operations.route,
)
