"""Two maps compared without sending either: the keys fall into buckets, and each bucket has a digest.

A bucket's digest is the exclusive or of its entries' hashes: no order matters, and an entry is put in or taken out
without a look at the others. Which maps there are is not said here.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from branchd.core.value import Value

#: all 256 digests are 5 kB in a message; of 10,000 branches about 40 share a bucket
BUCKETS = 256

#: what stands for the digest of a bucket that is not asked about
SKIP = ""


@lru_cache(maxsize=1 << 15)  # ids are not many, and looked up again and again
def point(key: str) -> int:
    """A place on a circle of 64 bits, the same on every machine."""
    return _hash(key)


def bucket(key: str) -> int:
    return point(key) % BUCKETS


class Digests(Value):
    values: tuple[int, ...] = (0,) * BUCKETS

    def replace(self, key: str, before: str | None, after: str | None) -> "Digests":
        """With the entry of that key as `after` instead of `before`; None: no entry. Both say all that matters."""
        changed = list(self.values)
        for value in (before, after):
            if value is not None:
                changed[bucket(key)] ^= _hash(f"{key}\0{value}")
        return Digests(tuple(changed))

    def texts(self) -> tuple[str, ...]:
        """Hexadecimal, in the order of the buckets."""
        return tuple(f"{value:x}" for value in self.values)


def differing(mine: Sequence[str], theirs: Sequence[str]) -> tuple[int, ...]:
    """The buckets that differ, by the digests that texts() gave here and elsewhere, but for what they SKIP."""
    return tuple(at for at, (own, text) in enumerate(zip(mine, theirs, strict=False)) if text not in (SKIP, own))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
