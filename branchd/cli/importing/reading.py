"""The files of a supervisord configuration: sections, comments and [include], as supervisord reads them.

What the keys mean stands in supervisord.py.
"""

import configparser
import glob
import os
from collections.abc import Mapping
from pathlib import Path

from branchd.cli.importing.notes import Note, Verdict
from branchd.cli.importing.values import expand
from branchd.core.errors import BranchdError
from branchd.core.value import Value

#: supervisord names the folder of a file so, and replaces it before anything else once there is an [include]
_HERE = "%(here)s"


class Unreadable(BranchdError):
    """A configuration that cannot be read, or is none."""


class Configuration(Value):
    here: str  #: folder of the first file
    sections: Mapping[str, Mapping[str, str]]
    files: Mapping[str, str]  #: section -> the file that it stands in first
    notes: tuple[Note, ...]  #: about [include]


def read(path: Path, host: str, variables: Mapping[str, str]) -> Configuration:
    """The file and those that it includes. Unreadable. `variables` is the environment that %(ENV_...)s asks."""
    main = os.path.abspath(path)
    here = os.path.dirname(main)
    # As supervisord's: sections and keys may be repeated, the last one holds.
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    _parse(parser, main)
    files = dict.fromkeys(parser.sections(), main)
    notes: list[Note] = []
    if parser.has_section("include"):
        _replace_here(parser, here)
        values = {"here": here, "host_node_name": host} | {f"ENV_{name}": value for name, value in variables.items()}
        for included in _included(parser, here, values, notes):
            before = parser.get("include", "files")
            _parse(parser, included)
            files |= {section: included for section in parser.sections() if section not in files}
            _replace_here(parser, os.path.dirname(included))
            if parser.get("include", "files") != before:
                notes.append(
                    Note(Verdict.DROPPED, ("files",), f"{included} includes files itself, which supervisord ignores")
                )
                parser.set("include", "files", before)
    return Configuration(here, {name: dict(parser.items(name)) for name in parser.sections()}, files, tuple(notes))


def _parse(parser: configparser.RawConfigParser, path: str) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    except (configparser.Error, ValueError, AttributeError) as error:
        # AttributeError: a key that goes on after its section was opened twice (a fault of configparser's own)
        raise Unreadable(f"{path} is not a supervisord configuration: {' '.join(str(error).split())}") from None


def _included(
    parser: configparser.RawConfigParser, here: str, values: Mapping[str, str], notes: list[Note]
) -> list[str]:
    text = parser.get("include", "files", fallback=None)
    if text is None:
        notes.append(Note(Verdict.LINT, (), "names no files; supervisord refuses such a configuration"))
        return []
    try:
        patterns = expand(text, values).split()
    except ValueError as error:
        raise Unreadable(f"[include] files: {error}") from None
    found: list[str] = []
    for pattern in patterns:
        try:
            matches = sorted(glob.glob(os.path.join(here, pattern)))
        except (ValueError, OSError) as error:  # such as a NUL in it
            raise Unreadable(f"[include] files: {error}") from None
        if not matches:
            notes.append(Note(Verdict.LINT, ("files",), f"no file matches {pattern}"))
        for match in matches:
            if os.path.exists(match) and not os.path.isdir(match) and not os.path.isfile(match):
                raise Unreadable(f"[include] files: {match} is not a regular file")  # a pipe or a device has no end
        found += [os.path.abspath(match) for match in matches if not os.path.isdir(match)]
    return found


def _replace_here(parser: configparser.RawConfigParser, here: str) -> None:
    for section in parser.sections():
        for key, value in parser.items(section):
            if _HERE in value:
                parser.set(section, key, value.replace(_HERE, here))
