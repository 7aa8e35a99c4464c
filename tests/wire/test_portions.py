from branchd.core.stamps import Entry, EntryKind, Stamp
from branchd.wire.portions import LONGEST_MESSAGE, PORTION, portions, text


def entry(name: str, length: int) -> Entry:
    return Entry(EntryKind.APP, name, "", Stamp(1, "a"), {"spec": {"x": "x" * length}})


def test_each_portion_fits_into_a_message_in_the_same_order() -> None:
    some = [entry("a", 10), entry("b", 2 * PORTION), entry("c", 10), entry("d", 10)]
    assert [[one.app for one in portion] for portion in portions(some)] == [["a"], ["b"], ["c", "d"]]
    assert not list(portions([]))
    many = [entry(str(number), 1000) for number in range(2000)]
    lengths = [sum(len(text(one)) for one in portion) for portion in portions(many)]
    assert PORTION / 2 < max(lengths) <= PORTION < LONGEST_MESSAGE
