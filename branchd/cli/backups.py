"""What `branchd backup` and `branchd restore` do with files, and say; the archive itself is adapters/backup.py's."""

import contextlib
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from branchd import __version__
from branchd.adapters.backup import Manifest, make, restore
from branchd.cli.config import Config
from branchd.cli.definition_files import FOLDER, paths
from branchd.cli.output import neutral
from branchd.core.errors import Fatal


def back_up(config: Config, file: str) -> None:
    """Fatal; then there is no FILE, or the one that was there before."""
    name, state = config.branch.name, config.branch.state
    if file == "-":
        if sys.stdout.isatty():
            raise Fatal("the standard output is a terminal", "name a file, or redirect the output")
        manifest = make(state, sys.stdout.buffer, name, __version__, time.time())
        sys.stdout.flush()
    else:
        manifest = _to_file(Path(file), config)
    click.echo(f"backed up {neutral(_told(manifest))}", err=True)
    click.echo(f"not in it: {', '.join(map(neutral, _beside(config)))}", err=True)


def put_back(config: Config, file: str, *, force: bool) -> None:
    """Fatal; then everything is as it was."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    try:
        with contextlib.ExitStack() as stack:
            archive = sys.stdin.buffer if file == "-" else stack.enter_context(open(file, "rb"))
            restored = restore(config.branch.state, archive, now, force=force)
    except OSError as error:
        raise Fatal(f"{file} cannot be read: {error.strerror}") from error
    click.echo(f"restored {neutral(_told(restored.manifest))} to {config.branch.state}", err=True)
    if restored.running:
        click.echo(f"still running: {', '.join(map(neutral, restored.running))}; the next start adopts those of the "
                   "backup, and nobody supervises the others", err=True)  # fmt: skip
    if restored.aside is not None:
        click.echo(f"what was there before is in {restored.aside}", err=True)
    if not restored.same_place:
        click.echo("it was made on another machine, or its folder is still there: with a broker the next start takes "
                   "`branchd run --same-machine` where this takes its place, or `--new-id` where the original lives on",
                   err=True)  # fmt: skip


def _to_file(path: Path, config: Config) -> Manifest:
    if path.exists() and not path.is_file():  # a device of the machine would be replaced by the backup
        raise Fatal(f"{path} is there, and is no regular file", "name another one, or - for the standard output")
    path = path.resolve()  # where a link leads to, so that it stays
    beside = path.with_name(f".{path.name}.partial")
    try:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()  # of one that was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(beside, flags, 0o600), "wb") as file:
                manifest = make(config.branch.state, file, config.branch.name, __version__, time.time())
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise Fatal(f"{path} cannot be written: {error.strerror}") from error
    return manifest


def _told(manifest: Manifest) -> str:
    at = datetime.fromtimestamp(manifest.at, UTC).isoformat(timespec="seconds")
    return f"branch {manifest.branch} of {at}, branchd {manifest.version}"


def _beside(config: Config) -> list[str]:
    """Files that a branch needs beside its state."""
    files: list[Path] = []
    if config.file is not None:
        try:
            files = paths(config.file)
        except OSError:
            files = [config.file, config.file.parent / FOLDER]
    files += [path for path in (config.mesh.key_file, config.mesh.broker_file, config.http.tls_certificate,
                                config.http.tls_key) if path is not None]  # fmt: skip
    return [*map(str, files), f"the logs in {config.branch.logs}"]
