"""Where the daemon's settings come from: its file, variables, flags; laid over each other, each value with its origin.

What the keys mean, and what makes a value wrong, stands in config.py.
"""

import datetime
import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from branchd.core.errors import Fault

#: section -> key -> value, as TOML gives it
Table = dict[str, dict[str, Any]]


class Settings(Struct):
    """What was said so far; a later layer beats an earlier one key by key."""

    #: the keys that each section has, with how to read one from the text of a variable
    keys: Mapping[str, Mapping[str, Callable[[str], Any]]]
    #: keys whose value is a path: a relative one starts at the folder of its file, or where the command was called
    paths: frozenset[str]
    #: of them, those that are looked up among the service manager's credentials first
    secrets: frozenset[str]
    #: where those are; None: there are none
    credentials: Path | None
    values: Table = field(default_factory=dict)
    origins: dict[tuple[str, str], str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def default(self, section: str, key: str, value: Any) -> Any:
        """What the key says, after `value` was put where nothing was said."""
        if key not in self.values.setdefault(section, {}):
            self._set(section, key, value, f"[{section}].{key}, by default")
        return self.values[section][key]

    def file(self, path: Path) -> None:
        try:
            table = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            self.faults.append(Fault(str(path), f"cannot be read: {error.strerror}"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            self.faults.append(Fault(str(path), f"is not TOML: {error}"))
        except RecursionError:
            self.faults.append(Fault(str(path), "is nested too deeply"))
        else:
            for section, value in table.items():
                self._section(path, section, value)

    def _section(self, path: Path, section: str, value: Any) -> None:
        if section == "apps":
            pass  # definition_files.py reads them, and the daemon judges them
        elif section not in self.keys:
            self.faults.append(Fault(f"{path}: [{section}]", "there is no such section", _near(section, self.keys)))
        elif not isinstance(value, dict):
            self.faults.append(Fault(f"{path}: {section}", "is a section", f"write [{section}] and its keys below"))
        else:
            for key, content in value.items():
                place = f"{path}: [{section}].{key}"
                if key not in self.keys[section]:
                    self.faults.append(Fault(place, "there is no such key", _near(key, self.keys[section])))
                elif has_date(content):
                    self.faults.append(Fault(place, "is a date", "text stands in quotes"))
                else:
                    self._set(section, key, self._absolute(key, content, path.parent), place)

    def variables(self, environment: Mapping[str, str]) -> None:
        for section, keys in self.keys.items():
            for key, read in keys.items():
                name = variable(key)
                if environment.get(name):
                    try:
                        value = read(environment[name])
                    except ValueError as error:
                        self.faults.append(Fault(name, str(error)))
                    else:
                        self._set(section, key, self._absolute(key, value, Path.cwd()), name)

    def flags(self, table: Mapping[tuple[str, str], Any]) -> None:
        """Only those that were given: None and an empty list are not."""
        for (section, key), value in table.items():
            if value not in (None, [], ()):
                self._set(section, key, self._absolute(key, value, Path.cwd()), "--" + key.replace("_", "-"))

    def _set(self, section: str, key: str, value: Any, origin: str) -> None:
        if key in self.paths and value == "":
            self.faults.append(Fault(origin, "is empty", "name a path, or leave it out"))
            return
        self.values.setdefault(section, {})[key] = value
        self.origins[section, key] = origin

    def _absolute(self, key: str, value: Any, base: Path) -> Any:
        if key == "listen" and isinstance(value, list | tuple):
            return [
                f"unix:{_below(base, item[5:])}" if isinstance(item, str) and item.startswith("unix:") else item
                for item in value
            ]
        if key not in self.paths or not isinstance(value, str) or not value:
            return value
        if key in self.secrets and self.credentials is not None and (self.credentials / value).exists():
            return os.path.normpath(self.credentials / value)
        return _below(base, value)


def variable(key: str) -> str:
    return "BRANCHD_" + key.upper()


def _below(base: Path, path: str) -> str:
    return os.path.normpath(base / os.path.expanduser(path))


def has_date(value: Any) -> bool:
    """TOML has dates, which JSON, and so what decodes the values, has not."""
    if isinstance(value, list | dict):
        return any(map(has_date, value.values() if isinstance(value, dict) else value))
    return isinstance(value, datetime.date | datetime.time)


def _near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else "one of " + ", ".join(names)


def text(value: str) -> str:
    return value


def texts(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


def pairs(value: str) -> dict[str, str]:
    parts = [item.partition("=") for item in texts(value)]
    if any(not separator for _, separator, _ in parts):
        raise ValueError("pairs such as zone=a,disk=ssd are expected")
    return {name: content for name, _, content in parts}


def whole(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a whole number") from None


def real(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number") from None


def truth(value: str) -> bool:
    if value.lower() not in {"1", "0", "true", "false", "yes", "no"}:
        raise ValueError(f"{value!r} is neither true nor false")
    return value.lower() in {"1", "true", "yes"}
