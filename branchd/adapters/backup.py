"""Backups of a branch: what its state folder holds, in one archive, taken while it runs and put back while it does not.

In it are the store (a copy that SQLite makes of it, consistent whatever is written meanwhile), the first token, and
what tells them. Not in it: configuration, keys, logs.
"""

import contextlib
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO
from urllib.parse import quote

from branchd.adapters import proc
from branchd.adapters.identity import marks
from branchd.adapters.state import StateFolder
from branchd.adapters.store import SqliteStore
from branchd.branch.identity import Mark
from branchd.core.errors import Fatal, Invalid
from branchd.core.value import Value
from branchd.core.values import Identity
from branchd.wire import json
from branchd.wire.decode import decode

#: of the archive; one that is higher is not understood
FORMAT = 1

_MANIFEST, _STORE, _TOKEN = "manifest.json", "branchd.db", "admin.token"

#: what SQLite keeps beside the store
_BESIDE = (f"{_STORE}-wal", f"{_STORE}-shm")

#: bytes of the two small files
_LONGEST = 64 << 10


class Manifest(Value):
    format: int
    at: float  #: when it was made, seconds since 1970
    branch: str  #: its name
    id: str  #: of the store
    version: str  #: of the branchd that made it
    state: str  #: the folder that it was made of


class Restored(Value):
    manifest: Manifest
    aside: Path | None  #: where what was there before is now
    same_place: bool  #: on the machine that it was made on, so that nothing has to be asked
    running: tuple[str, ...]  #: programs of the branch that still run, in words


def make(state: Path, out: IO[bytes], name: str, version: str, now: float) -> Manifest:
    """Writes the archive of a branch that runs, or does not. Fatal; also for anybody but the folder's owner.

    For names are followed in the folder: root would write where its owner has them lead.
    """
    try:
        if not (state / _STORE).exists():
            raise Fatal(f"there is no branch in {state}", "say where its state is: --state, or --config")
        if (owner := state.stat().st_uid) != os.geteuid():
            raise Fatal(f"{state} belongs to uid {owner}, and this is uid {os.geteuid()}", "run it as that user")
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=state) as folder:
            copy = Path(folder) / _STORE
            with _opened(state / _STORE) as source, _opened(copy, new=True) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")  # else a part of it may stand in another file
                _check(copy, target)
                manifest = Manifest(FORMAT, now, name, _identifier(target), version, str(state))
            with tarfile.open(fileobj=out, mode="w|gz") as archive:
                (Path(folder) / _MANIFEST).write_bytes(json.dumps(manifest))
                archive.add(Path(folder) / _MANIFEST, _MANIFEST, filter=_plain)
                archive.add(copy, _STORE, filter=_plain)
                with contextlib.suppress(FileNotFoundError):  # removed by hand: the next start makes another one
                    archive.add(state / _TOKEN, _TOKEN, filter=_plain)
    except (OSError, sqlite3.Error) as error:
        raise Fatal(
            f"{state} cannot be backed up: {_words(error)}", "run it as root, or as the daemon's user"
        ) from error
    return manifest


def restore(state: Path, archive: IO[bytes], now: str, *, force: bool) -> Restored:
    """Puts back what an archive holds, after it was seen to be whole; `now` names what is put aside. Fatal.

    `force`: also where there is a branch in the folder already, and where programs of it, or of the backup, still run.
    """
    folder = StateFolder(state)
    folder.acquire()  # no daemon uses it now, nor begins to
    try:
        there = [name for name in (_STORE, _TOKEN) if (state / name).exists()]
        if there and not force:
            raise Fatal(
                f"there is a branch in {state} already", "--force puts it aside; or choose another folder with --state"
            )
        with tempfile.TemporaryDirectory(prefix=".restore-", dir=state) as found:
            manifest = _unpack(archive, Path(found))
            runs = _runs(Path(found) / _STORE)
            with contextlib.suppress(sqlite3.Error):  # a damaged one is put aside, and tells nothing
                runs += _runs(state / _STORE)
            running = _running(runs)
            if running and not force:
                more = f" and {len(running) - 5} more" if len(running) > 5 else ""
                raise Fatal(
                    f"programs of the branch still run: {', '.join(running[:5])}{more}",
                    "start its daemon and stop it by TERM; with --force the backup's are adopted, others left alone",
                )
            same_place = _settle(Path(found) / _STORE, manifest, state)
            aside = _put_aside(state, now) if there else None
            _put_in_place(Path(found), state)
        return Restored(manifest, aside, same_place, running)
    except (OSError, sqlite3.Error) as error:
        raise Fatal(f"{state} cannot be restored: {_words(error)}", "free space on its disk, and try again") from error
    finally:
        folder.release()


def _unpack(archive: IO[bytes], folder: Path) -> Manifest:
    """Nothing but the files that belong there, and those checked."""
    try:
        with tarfile.open(fileobj=archive, mode="r|gz") as members:
            for member in members:
                content = members.extractfile(member) if member.isreg() else None
                if member.name not in {_MANIFEST, _STORE, _TOKEN} or content is None:
                    raise Fatal(f"{member.name[:80]!r} stands in the archive, which is no backup of a branch")
                if (folder / member.name).exists():
                    raise Fatal(f"{member.name} stands in the archive twice, which is no backup of a branch")
                if member.name != _STORE and member.size > _LONGEST:
                    raise Fatal(f"{member.name} in the archive is longer than it can be")
                with open(os.open(folder / member.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    shutil.copyfileobj(content, file)
                    file.flush()
                    os.fsync(file.fileno())
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Fatal(f"the archive cannot be read: {error}", "it is damaged, or no backup") from None
    return _checked(folder)


def _checked(folder: Path) -> Manifest:
    try:
        manifest = decode(Manifest, json.loads((folder / _MANIFEST).read_bytes()))
    except (FileNotFoundError, ValueError, Invalid):
        raise Fatal("the archive does not say what it is, so it is no backup of a branch") from None
    if manifest.format > FORMAT:
        raise Fatal(
            f"the backup was made by a newer branchd, {manifest.version}", "install that one, and restore with it"
        )
    if not (folder / _STORE).exists():
        raise Fatal("there is no store in the archive")
    with _opened(folder / _STORE) as store:
        _check(Path(_STORE), store)
        if _identifier(store) != manifest.id:
            raise Fatal("the store in the archive is not the one that it tells of")
    SqliteStore(folder).check()
    return manifest


def _settle(store: Path, manifest: Manifest, state: Path) -> bool:
    """Whether this is the machine of the backup, and its folder no more anywhere else; then it is no copy of anything.

    The store is told so: its folder may have been made anew.
    """
    here = marks(state)
    with _opened(store) as connection:
        facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
        same = all(facts.get(mark, "") == here.get(mark, "") for mark in (Mark.MACHINE, Mark.HARDWARE))
        known = any(here.get(mark) for mark in (Mark.MACHINE, Mark.HARDWARE))
        if not (same and known) or _lives_elsewhere(manifest, state):
            return False
        told = {mark: here[mark] for mark in (Mark.FILE_SYSTEM, Mark.FOLDER) if mark in here}
        _write_facts(connection, told)
    return True


def _lives_elsewhere(manifest: Manifest, state: Path) -> bool:
    original = Path(manifest.state)
    if original.resolve() == state.resolve() or not (original / _STORE).exists():
        return False
    try:
        with _opened(original / _STORE) as store:
            return _identifier(store) == manifest.id
    except sqlite3.Error:
        return True  # nobody can tell


def _runs(path: Path) -> list[tuple[str, str, Identity]]:
    """Of each instance that has a process, or may have: name, mark, identity. sqlite3.Error."""
    with _opened(path) as store:
        rows = store.execute("SELECT app, instance, nonce, process_boot, process_pid, process_started FROM runs")
        return [(f"{app}:{name}", nonce, Identity(*process)) for app, name, nonce, *process in rows if nonce]


def _running(runs: list[tuple[str, str, Identity]]) -> tuple[str, ...]:
    """What of these still runs: by its identity, or by the mark in the environment of any of its tree."""
    boot = proc.boot_id()
    by_mark = {mark: name for name, mark, _ in runs}
    by_identity = {identity: name for name, _, identity in runs}
    found: dict[str, int] = {}
    for pid in sorted(proc.pids()):
        stat = proc.stat(pid)
        if stat is not None and not stat.ended:
            known = by_identity.get(Identity(boot, pid, stat.started)) or by_mark.get(proc.mark(pid) or "")
            if known is not None:
                found.setdefault(known, pid)
    return tuple(f"{name} (pid {pid})" for name, pid in sorted(found.items()))


def _put_aside(state: Path, now: str) -> Path:
    aside = state / f"before-restore-{now}"
    aside.mkdir(mode=0o700)
    with contextlib.suppress(sqlite3.Error), _opened(state / _STORE) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # of a damaged one all files are kept as they are
    for name in _BESIDE:
        with contextlib.suppress(FileNotFoundError):
            os.rename(state / name, aside / name)
    for name in (_STORE, _TOKEN):
        with contextlib.suppress(FileNotFoundError):
            os.link(state / name, aside / name)  # in its own place it stays until another one takes that, at once
    return aside


def _put_in_place(found: Path, state: Path) -> None:
    if not (found / _TOKEN).exists():
        (state / _TOKEN).unlink(missing_ok=True)
    for name in (_TOKEN, _STORE):
        if (found / name).exists():
            os.rename(found / name, state / name)
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_facts(connection: sqlite3.Connection, facts: Mapping[Mark, str]) -> None:
    for mark, value in facts.items():
        connection.execute(
            "INSERT INTO facts (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (mark.value, value),
        )


def _check(path: Path, store: sqlite3.Connection) -> None:
    try:
        [verdict] = store.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        verdict = error
    if verdict != "ok":
        raise Fatal(f"{path.name} is damaged: {verdict}", "take another backup")


def _identifier(store: sqlite3.Connection) -> str:
    try:
        [identifier] = store.execute("SELECT value FROM meta WHERE key = 'branch_id'").fetchone()
    except (sqlite3.Error, TypeError):
        raise Fatal("what should be the store of a branch is none") from None
    return str(identifier)


@contextlib.contextmanager
def _opened(path: Path, *, new: bool = False) -> Iterator[sqlite3.Connection]:
    mode = "rwc" if new else "rw"
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mode, member.uid, member.gid, member.uname, member.gname = 0o600, 0, 0, "", ""
    return member


def _words(error: OSError | sqlite3.Error) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
