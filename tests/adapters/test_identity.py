"""What a state folder is known by, and that a copy joins no neighbourhood before somebody says what it is."""

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from branchd.adapters.identity import file_system, marks
from branchd.adapters.store import SqliteStore
from branchd.branch.identity import Answer, Mark, branch_id, differences, settle
from branchd.branch.records import (
    AppRecord,
    InstanceRecord,
    OutcomeRecord,
    Placed,
    Put,
    RunRecord,
    Snapshot,
    TokenRecord,
)
from branchd.core.errors import Fatal
from branchd.core.lifecycle import Machine
from branchd.core.values import Identity, Key

FOUND = {Mark.MACHINE: "m1", Mark.HARDWARE: "h1", Mark.FILE_SYSTEM: "f1", Mark.FOLDER: "11"}
NEW = "f" * 32


def remembered(found: dict[Mark, str]) -> dict[str, str]:
    return {str(mark): value for mark, value in found.items()}


def snapshot(facts: dict[str, str]) -> Snapshot:
    return Snapshot("a" * 32, (), (), (), (), (), (), (), (), 0, facts)


def start(
    facts: dict[str, str], found: dict[Mark, str], answer: Answer | None = None, joins: bool = True
) -> dict[str, str]:
    """What is remembered after a start."""
    changes, _ = settle(snapshot(facts), found, answer, joins, NEW)
    return facts | {change.name: change.value for change in changes}


# Reading


def machine(root: Path, machine_id: str | None, hardware: str | None) -> Path:
    for name, content in (("etc/machine-id", machine_id), ("sys/class/dmi/id/product_uuid", hardware)):
        if content is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
    return root


def test_the_machine_and_the_folder_are_read(tmp_path: Path) -> None:
    root = machine(tmp_path, "0123abcd\n", "ABCD-EF\n")
    found = marks(tmp_path, root)
    assert found == {
        Mark.MACHINE: "0123abcd", Mark.HARDWARE: "abcd-ef", Mark.FOLDER: str(tmp_path.stat().st_ino)
    }  # fmt: skip


@pytest.mark.parametrize("content", [None, "", "\n", "uninitialized\n"])
def test_what_a_machine_does_not_tell_is_missing(tmp_path: Path, content: str | None) -> None:
    assert list(marks(tmp_path, machine(tmp_path, content, None))) == [Mark.FOLDER]


def test_a_file_system_is_known_by_its_uuid(tmp_path: Path) -> None:
    links = tmp_path / "dev/disk/by-uuid"
    assert file_system(Path("/dev/null").stat().st_rdev, tmp_path) == ""
    links.mkdir(parents=True)
    (links / "AAAA").symlink_to("/dev/zero")
    (links / "BBBB").symlink_to("/dev/null")
    (links / "CCCC").symlink_to("gone")
    assert file_system(Path("/dev/null").stat().st_rdev, tmp_path) == "BBBB"
    assert file_system(12345, tmp_path) == ""


def test_a_copied_folder_has_another_mark_and_a_moved_one_has_not(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "branchd.db").touch()
    before = marks(folder)
    shutil.copytree(folder, tmp_path / "copy")
    assert differences(remembered(dict(before)), marks(tmp_path / "copy")) == ["the state folder's inode"]
    assert differences(remembered(dict(before)), marks(folder.rename(tmp_path / "moved"))) == []


# Deciding


def test_the_first_start_remembers_and_the_next_ones_write_nothing() -> None:
    facts = start({}, FOUND)
    assert facts == remembered(FOUND)
    assert settle(snapshot(facts), FOUND, None, True, NEW) == ([], "")


@pytest.mark.parametrize("mark", list(Mark))
def test_any_mark_that_differs_keeps_a_branch_with_a_broker_from_starting(mark: Mark) -> None:
    with pytest.raises(Fatal) as caught:
        start(remembered(FOUND), FOUND | {mark: "other"})
    assert "--new-id" in caught.value.hint
    assert "--same-machine" in caught.value.hint
    assert "other" not in caught.value.detail


@pytest.mark.parametrize("mark", list(Mark))
def test_a_mark_that_is_missing_on_either_side_does_not_count(mark: Mark) -> None:
    fewer = {known: value for known, value in FOUND.items() if known is not mark}
    assert start(remembered(FOUND), fewer) == remembered(FOUND)
    assert start(remembered(fewer), FOUND) == remembered(FOUND)


def test_without_a_broker_it_starts_and_the_question_is_asked_when_it_joins() -> None:
    other = FOUND | {Mark.MACHINE: "m2"}
    changes, warning = settle(snapshot(remembered(FOUND)), other, None, False, NEW)
    assert changes == []
    assert "/etc/machine-id" in warning
    with pytest.raises(Fatal):
        start(remembered(FOUND), other)


@pytest.mark.parametrize("answer", list(Answer))
def test_an_answer_is_remembered_so_that_it_is_given_once(answer: Answer) -> None:
    other = {Mark.MACHINE: "m2", Mark.FOLDER: "22"}  # and what it does not tell is forgotten
    facts = start(remembered(FOUND), other, answer)
    later = {Mark.HARDWARE: "h2", Mark.FILE_SYSTEM: "f2", **other}
    assert start(facts, other) == facts
    assert start(facts, later)[Mark.HARDWARE] == "h2"
    assert branch_id(snapshot(facts)) == (NEW if answer is Answer.NEW_ID else "a" * 32)


async def test_a_new_branch_keeps_what_is_pinned_and_forgets_what_the_original_runs(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    original = store.load()
    placed = Placed("request", "digest", True, 5.0)
    run = RunRecord(Key("shop", "pinned"), Machine(alive=True, run=3), "boot", "nonce", 1.0, Identity("boot", 77, 88))
    await store.write(
        Put(AppRecord("shop", {"kind": "command"})),
        Put(InstanceRecord(Key("shop", "pinned"), {"weight": 2}, generation=4)),
        Put(run),
        Put(InstanceRecord(Key("shop", "placed"), {}, placed=placed)),
        Put(replace(run, key=Key("shop", "placed"))),
        Put(OutcomeRecord("request", "digest", 5.0, "shop", "placed")),
        Put(OutcomeRecord("other", "digest", 5.0, "shop", "pinned")),
        Put(TokenRecord("t", "ci", "d", "read", 1.0)),
    )
    store.close()
    before = store.load()
    changes, _ = settle(before, marks(tmp_path), Answer.NEW_ID, True, NEW)
    await store.write(*changes)
    store.close()
    after = store.load()
    store.close()

    assert branch_id(before) == original.branch_id
    assert branch_id(after) == NEW
    assert after.instances == tuple(one for one in before.instances if one.placed is None)
    assert after.runs == ()
    assert (after.apps, after.tokens) == (before.apps, before.tokens)
    assert {outcome.request: outcome.ended for outcome in after.outcomes} == {"request": True, "other": False}


async def test_the_same_machine_keeps_everything(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.load()
    await store.write(
        Put(AppRecord("shop", {})), Put(InstanceRecord(Key("shop", "x"), {}, placed=Placed("r", "d", True, 5.0)))
    )
    store.close()
    before = store.load()
    changes, _ = settle(before, marks(tmp_path), Answer.SAME_MACHINE, True, NEW)
    await store.write(*changes)
    store.close()
    after = store.load()
    store.close()
    assert replace(after, facts={}) == replace(before, facts={})
    assert branch_id(after) == before.branch_id
