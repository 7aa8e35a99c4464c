"""Apps as files define them: values, which nobody has judged yet. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from branchd.core.errors import Fault

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FileApp:
    """One app of one file; nothing of it is checked yet but that tables are tables."""

    name: str
    source: str  #: path of the file
    spec: Raw
    instances: Mapping[str, Raw] = field(default_factory=dict)
    queues: Mapping[str, Raw] = field(default_factory=dict)  #: bodies as the API takes them

    def place(self, *steps: str) -> str:
        """For people: the file, and the table in it."""
        return f"{self.source}: [{'.'.join(('apps', self.name, *steps))}]"


@dataclass(frozen=True, slots=True)
class FileDefinitions:
    apps: Mapping[str, FileApp] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()  #: of reading: pointers name file and table
    files: tuple[str, ...] = ()  #: that were read
