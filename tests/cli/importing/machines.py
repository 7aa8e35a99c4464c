"""A machine as an import asks for it, of which a test says what there is."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class FakeMachine:
    programs: Mapping[str, str] = field(default_factory=dict)  #: name -> its path
    scripts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    users: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()

    def which(self, program: str, path: str) -> str | None:
        found = self.programs.get(program)
        return found if found is not None and found.rpartition("/")[0] in path.split(":") else None

    def script(self, path: str) -> tuple[str, ...] | None:
        return self.scripts.get(path)

    def has_user(self, name: str) -> bool:
        return name in self.users

    def account(self, number: int) -> str | None:
        return None

    def has_folder(self, path: str) -> bool:
        return path in self.folders


#: what all samples of data/ are read on
MACHINE = FakeMachine(
    programs={
        "php": "/usr/bin/php",
        "nginx": "/usr/sbin/nginx",
        "php-fpm8.2": "/usr/sbin/php-fpm8.2",
        "sh": "/bin/sh",
        "bash": "/bin/bash",
        "flows": "/srv/flows/venv/bin/flows",
        "configurable-http-proxy": "/opt/conda/bin/configurable-http-proxy",
    },
    scripts={
        "/srv/forge/bin/run-puma.sh": ("#!/bin/bash -e", "# serves", "cd /srv/forge", "bin/puma -C config/puma.rb"),
        "/srv/chat/./presence.sh": ("#!/bin/sh", "ulimit -n 4096", "exec bin/presence"),
        "/srv/orchard/venv/bin/celery": ("#!/srv/orchard/venv/bin/python3.11", "import sys"),
    },
    users=frozenset({"shop", "flows", "erp", "git", "root", "www-data"}),
    folders=frozenset(
        {"/var/log/shop", "/var/log/erp", "/var/www/app/storage/logs", "/var/log/crawl", "/var/log/chat"}
    ),
)

#: and with
HOST = "pear"
VARIABLES = {"PATH": "/usr/bin:/bin", "WEB_WORKERS": "4", "FLOWS_SLOTS": "16", "REGION": "north", "PROXY_TOKEN": "t0k"}
