"""Apps as files define them: values, which nobody has judged yet. Pure."""

from collections.abc import Mapping
from typing import Any

from msgspec import field

from branchd.core.errors import Fault
from branchd.core.value import Value

Raw = Mapping[str, Any]


class FileApp(Value):
    """One app of one file; nothing of it is checked yet but that tables are tables."""

    name: str
    source: str  #: path of the file
    spec: Raw
    instances: Mapping[str, Raw] = field(default_factory=dict)
    queues: Mapping[str, Raw] = field(default_factory=dict)  #: bodies as the API takes them

    def place(self, *steps: str) -> str:
        """For people: the file, and the table in it."""
        return f"{self.source}: [{'.'.join(('apps', self.name, *steps))}]"


class FileDefinitions(Value):
    apps: Mapping[str, FileApp] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()  #: of reading: pointers name file and table
    files: tuple[str, ...] = ()  #: that were read
