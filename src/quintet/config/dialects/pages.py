"""The pages docs/dialects/*-keys.md, written from the tables: ``python -m quintet.config.dialects.pages FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from quintet.config.dialects import NAMES, dialect_named
from quintet.config.dialects.dialect import AnyDialect, Dialect
from quintet.config.dialects.table import REQUIRED, Key
from quintet.config.reference import dialect_page

_HEAD = """# {title}: all keys

Generated from the table by `make docs`; `quintet explain KEY --dialect {name}` says the same in a terminal. How a file
of {title} is run, and where its document and its code differ, is in [{name}.md]({name}.md).

Keys marked ° are not in {title}'s document, but in files of the project.
"""


def page(dialect: AnyDialect) -> str:
    """The page of ``dialect`` as Markdown."""
    if isinstance(dialect, Dialect):
        return dialect_page(dialect.name, dialect.title, dialect.top)
    lines = [_HEAD.format(title=dialect.title, name=dialect.name)]
    rows = ["| key | value | default | meaning | sets |", "|---|---|---|---|---|"]
    for key in dialect.keys:
        cells = (_name(key), key.value.words, default_of(key), meaning_of(key), _sets(key))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, *rows]) + "\n"


def default_of(key: Key) -> str:
    """The default of ``key`` as its document writes it."""
    if key.default == REQUIRED:
        return "must be given"
    if key.default is None:
        return ""
    try:
        written = key.value.write(key.default)
    except ValueError:
        written = key.default
    if isinstance(written, bool):
        return f"`{str(written).lower()}`"
    if isinstance(written, float):
        return f"`{written:g}`"
    return f"`{written}`"


def meaning_of(key: Key) -> str:
    """What ``key`` does, and what it cannot do."""
    text = key.help[:1].upper() + key.help[1:]
    if key.aliases:
        text += f". Also `{'`, `'.join(key.aliases)}`"
    for word, reason in (("No effect", key.no_effect), ("Refused", key.refused)):
        text += f". {word}: {reason}" if reason else ""
    if key.pending:
        text += f". Needs {key.pending}, which is not built yet"
    return text


def native_of(key: Key) -> tuple[str, ...]:
    """The native keys that ``key`` sets or has a say in."""
    return ((key.to,) if key.to else ()) + tuple(path for path in key.affects if path != key.to)


def _name(key: Key) -> str:
    return f"`{key.path}`" + ("" if key.documented else " °")


def _sets(key: Key) -> str:
    return ", ".join(f"`{path}`" for path in native_of(key))


def write_pages(folder: Path) -> None:
    """Write the page of every dialect into ``folder``."""
    for name in NAMES:
        (folder / f"{name}-keys.md").write_text(page(dialect_named(name)), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
