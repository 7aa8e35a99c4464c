"""Sealed messages: what is opened, and that everything else is refused, each by its reason."""

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchd.core.peers import Address
from branchd.wire import sealing
from branchd.wire.sealing import KeyRing, NeighbourhoodKey, NeighbourhoodSeal, Path, Reason, Rejected

OLD, NEW, OTHER = (NeighbourhoodKey(bytes([byte]) * 32) for byte in (1, 2, 3))
RING = KeyRing((OLD,))
MINUTE = 60


@dataclass
class Clock:
    now: float = 1.7e9

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """Branches of a neighbourhood, each with a clock of its own."""

    ring: KeyRing = RING
    neighbourhood: str = "blue"
    count: int = field(default=0, init=False)

    def branch(self, clock: Clock | None = None, identifier: str = "") -> tuple[Address, NeighbourhoodSeal]:
        self.count += 1
        me = Address(identifier or f"id{self.count}", os.urandom(16).hex())
        return me, NeighbourhoodSeal(self.ring, self.neighbourhood, me, clock or Clock())


def reason(receiver: NeighbourhoodSeal, target: str, message: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        receiver.open(target, message)
    return caught.value.reason


@given(st.binary(max_size=2000), st.sampled_from(Path), st.text(max_size=60))
def test_what_was_sealed_is_opened_with_its_sender(body: bytes, path: Path, target: str) -> None:
    world = World()
    me, sender = world.branch()
    _, receiver = world.branch()
    for _ in range(2):
        opened = receiver.open(target, sender.seal(path, target, body))
        assert (opened.sender, opened.body) == (me, body)


def test_the_body_cannot_be_read_on_the_way() -> None:
    _, sender = World().branch()
    assert b"secret" not in sender.seal(Path.SEND, "t", b"secret" * 10)


@given(st.data())
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    world = World()
    _, sender = world.branch()
    _, receiver = world.branch()
    message = bytearray(sender.seal(Path.SEND, "target", b"body"))
    at = data.draw(st.integers(0, len(message) * 8 - 1))
    message[at // 8] ^= 1 << at % 8
    assert reason(receiver, "target", bytes(message)) in set(Reason) - {Reason.REPLAYED, Reason.EXPIRED}


@given(st.data())
def test_any_piece_that_is_missing_or_too_much_is_refused(data: st.DataObject) -> None:
    world = World()
    _, sender = world.branch()
    _, receiver = world.branch()
    message = sender.seal(Path.SEND, "target", b"body")
    length = data.draw(st.integers(0, len(message) - 1))
    assert reason(receiver, "target", message[:length]) in {Reason.GARBAGE, Reason.FORGED}
    assert reason(receiver, "target", message + b"\0" * (length + 1)) == Reason.FORGED


@given(st.binary(max_size=300))
def test_garbage_is_garbage(message: bytes) -> None:
    _, receiver = World().branch()
    assert reason(receiver, "", message) == Reason.GARBAGE


@given(st.binary(max_size=300))
def test_garbage_after_a_right_beginning_is_refused(rest: bytes) -> None:
    _, receiver = World().branch()
    assert reason(receiver, "", b"brd\x01" + rest) in {Reason.GARBAGE, Reason.WRONG_NEIGHBOURHOOD}


def test_another_version_is_told() -> None:
    world = World()
    _, sender = world.branch()
    message = sender.seal(Path.SEND, "t", b"")
    assert reason(world.branch()[1], "t", message[:3] + b"\x02" + message[4:]) == Reason.WRONG_VERSION


def test_another_neighbourhood_is_told_and_renaming_it_does_not_help() -> None:
    _, sender = World(neighbourhood="blue").branch()
    _, receiver = World(neighbourhood="pink").branch()
    message = sender.seal(Path.SEND, "t", b"")
    assert reason(receiver, "t", message) == Reason.WRONG_NEIGHBOURHOOD
    assert reason(receiver, "t", message.replace(b"blue", b"pink")) == Reason.FORGED


def test_another_key_is_told_and_renaming_it_does_not_help() -> None:
    _, sender = World(KeyRing((OTHER,))).branch()
    _, receiver = World().branch()
    message = sender.seal(Path.SEND, "t", b"")
    assert reason(receiver, "t", message) == Reason.UNKNOWN_KEY
    renamed = message.replace(bytes.fromhex(OTHER.id), bytes.fromhex(OLD.id))
    assert reason(receiver, "t", renamed) == Reason.FORGED


def test_nobody_speaks_in_anothers_name() -> None:
    world = World()
    me, sender = world.branch()
    victim, _ = world.branch()
    _, receiver = world.branch()
    message = sender.seal(Path.SEND, "t", b"").replace(me.id.encode(), victim.id.encode())
    assert reason(receiver, "t", message.replace(me.boot.encode(), victim.boot.encode())) == Reason.FORGED


def test_what_is_for_another_target_is_refused_and_does_not_count() -> None:
    world = World()
    _, sender = world.branch()
    _, receiver = world.branch()
    message = sender.seal(Path.SEND, "id/boot2", b"")
    assert reason(receiver, "id/boot1", message) == Reason.WRONG_TARGET
    assert receiver.open("id/boot2", message).body == b""


def test_a_copy_and_what_comes_out_of_order_is_refused() -> None:
    world = World()
    _, sender = world.branch()
    _, receiver = world.branch()
    first, second, third = (sender.seal(Path.SEND, "t", body) for body in (b"1", b"2", b"3"))
    receiver.open("t", first)
    receiver.open("t", third)
    assert [reason(receiver, "t", message) for message in (first, second, third)] == [Reason.REPLAYED] * 3


def test_each_path_and_each_life_has_a_counter_of_its_own() -> None:
    world = World()
    _, first = world.branch(identifier="same")
    _, second = world.branch(identifier="same")
    _, receiver = world.branch()
    first.seal(Path.SEND, "t", b"")
    for sender in (first, second):
        for path in Path:
            assert receiver.open("t", sender.seal(path, "t", b"x")).body == b"x"


def test_two_senders_write_the_same_in_different_bytes() -> None:
    """Keys of their own: the same nonce never meets the same key."""
    clock = Clock()
    world = World()
    _, first = world.branch(clock, "same")
    _, second = world.branch(clock, "same")
    bodies = {seal.seal(Path.SEND, "t", b"\0" * 32)[-48:-16] for seal in (first, second, first)}
    assert len(bodies) == 3


def test_clocks_may_differ_by_ten_minutes_and_what_was_held_back_is_expired() -> None:
    world = World()
    here = Clock()
    _, receiver = world.branch(here)
    for minutes in (-10, 10):
        _, sender = world.branch(Clock(here.now + minutes * MINUTE))
        receiver.open("t", sender.seal(Path.SEND, "t", b""))
    _, sender = world.branch(Clock(here.now))
    receiver.open("t", sender.seal(Path.SEND, "t", b""))
    held = sender.seal(Path.SEND, "t", b"")
    here.now += 16 * MINUTE
    assert reason(receiver, "t", held) == Reason.EXPIRED
    _, ahead = world.branch(Clock(here.now + 16 * MINUTE))
    assert reason(receiver, "t", ahead.seal(Path.SEND, "t", b"")) == Reason.EXPIRED


def test_a_clock_that_is_set_back_cuts_nobody_off_and_lets_no_copy_in() -> None:
    world = World()
    clock = Clock()
    _, sender = world.branch(clock)
    _, receiver = world.branch(clock)
    message = sender.seal(Path.SEND, "t", b"")
    receiver.open("t", message)
    clock.now -= 3600
    receiver.open("t", sender.seal(Path.SEND, "t", b""))
    clock.now += 3600
    assert reason(receiver, "t", message) == Reason.REPLAYED


def test_forgetting_is_bounded_and_opens_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "LIVES", 10)
    world = World()
    clock = Clock()
    _, receiver = world.branch(clock)
    _, steady = world.branch(clock)
    seen = []
    for _ in range(50):
        clock.now += 1
        _, sender = world.branch(clock)
        for message in (sender.seal(Path.BROADCAST, "", b""), steady.seal(Path.BROADCAST, "", b"")):
            receiver.open("", message)
            seen.append(message)
    assert len(receiver._lines) == 10
    clock.now -= MINUTE  # also where the clock is set back
    assert {reason(receiver, "", message) for message in seen} == {Reason.REPLAYED, Reason.EXPIRED}
    receiver.open("", steady.seal(Path.BROADCAST, "", b""))


def test_one_that_was_forgotten_goes_on_when_it_speaks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "LIVES", 3)
    world = World()
    clock = Clock()
    _, receiver = world.branch(clock)
    senders = [world.branch(clock)[1] for _ in range(6)]
    for _ in range(4):
        for sender in senders:
            clock.now += 1
            receiver.open("", sender.seal(Path.BROADCAST, "", b""))


def test_the_silent_ones_are_forgotten_so_that_a_newcomers_clock_may_be_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "LIVES", 4)
    world = World()
    clock = Clock()
    _, receiver = world.branch(clock)
    steady, ended, late = ([world.branch(clock)[1] for _ in range(count)] for count in (2, 2, 1))
    for speaking in ([*steady, *ended], steady, [*steady, *late]):
        clock.now += 20 * MINUTE
        for sender in speaking:
            receiver.open("", sender.seal(Path.BROADCAST, "", b""))
    _, behind = world.branch(Clock(clock.now - 10 * MINUTE))
    receiver.open("", behind.seal(Path.BROADCAST, "", b""))


def test_what_a_clock_wrote_before_it_was_set_back_is_forgotten_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "LIVES", 1)
    world = World()
    here, there = Clock(), Clock()
    _, receiver = world.branch(here)
    _, sender = world.branch(there)
    first = sender.seal(Path.BROADCAST, "", b"")
    receiver.open("", first)
    there.now -= 5 * MINUTE
    receiver.open("", sender.seal(Path.BROADCAST, "", b""))
    here.now += 1
    receiver.open("", world.branch(here)[1].seal(Path.BROADCAST, "", b""))  # which makes it forget the other
    assert reason(receiver, "", first) == Reason.EXPIRED


def test_what_does_not_open_is_not_remembered() -> None:
    world = World()
    _, receiver = world.branch()
    for _ in range(20):
        _, sender = world.branch()
        message = sender.seal(Path.SEND, "t", b"")
        assert reason(receiver, "t", message[:-1]) == Reason.FORGED
    assert not receiver._lines


def test_a_key_is_changed_in_three_steps_without_a_branch_that_is_cut_off() -> None:
    """Every order in which branches may take up the files: neighbouring files always understand each other."""
    files = [KeyRing((OLD,)), KeyRing((OLD, NEW)), KeyRing((NEW, OLD)), KeyRing((NEW,))]
    world = World(files[0])
    branches = [world.branch()[1] for _ in range(2)]
    for ring in files[1:]:
        for changed in branches:
            changed.use(ring)
            for sender in branches:
                for receiver in branches:
                    receiver.open("t", sender.seal(Path.SEND, "t", b""))


def test_a_copy_from_before_a_change_of_keys_is_refused() -> None:
    world = World()
    _, sender = world.branch()
    _, receiver = world.branch()
    message = sender.seal(Path.SEND, "t", b"")
    receiver.open("t", message)
    for seal in (sender, receiver):
        seal.use(KeyRing((NEW, OLD)))
    receiver.open("t", sender.seal(Path.SEND, "t", b""))
    assert reason(receiver, "t", message) == Reason.REPLAYED
    receiver.use(KeyRing((NEW,)))
    assert reason(receiver, "t", message) == Reason.UNKNOWN_KEY


def test_a_ring_has_one_key_or_two_different_ones() -> None:
    for keys in ((), (OLD, OLD), (OLD, NEW, OTHER)):
        with pytest.raises(ValueError, match="two different"):
            KeyRing(keys)
    with pytest.raises(ValueError, match="32 bytes"):
        NeighbourhoodKey(b"short")


def test_a_boot_that_is_not_random_is_refused() -> None:
    for boot in ("", "1", "x" * 32):
        with pytest.raises(ValueError, match="128 random bits"):
            NeighbourhoodSeal(RING, "blue", Address("id", boot), Clock())


def test_a_key_is_not_shown() -> None:
    assert OLD.secret.hex() not in repr(RING)
    assert repr(OLD.secret) not in repr(RING)
