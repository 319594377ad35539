"""Reference pages of all keys: ``python -m quintet.config.reference`` prints docs/reference/run-file.md; with a folder
as its argument it writes the pages of all dialects there."""

import sys
from pathlib import Path

from quintet.config.describe import KeyInfo, Section, run_file
from quintet.config.dialects import NAMES, dialect_named
from quintet.config.keypath import is_list

_HEAD = """# Run file: all keys

Generated from the schema by `make docs`; `quintet explain KEY` prints the same in a terminal. How files, `extends`,
interpolation and overrides work is in the [guide](../guide/run-file.md).

A section with kinds has one table per kind. **Required** keys have no default. A section whose `kind` has a default
need not give it.
"""


_DIALECT_HEAD = """# {title}: all keys

Generated from the schema by `make docs`; `quintet explain KEY --dialect {name}` prints the same in a terminal. How a
file of {title} is run, and where its document and its code differ, is in [{name}.md]({name}.md).

**Required** keys have no default. Keys marked ° are not in {title}'s document, but in the project's files. The column
"sets" names the keys of [run files](../reference/run-file.md) that a key sets.
"""


def reference_page() -> str:
    """Return the page of native run files as Markdown."""
    return _page(_HEAD, run_file())


def dialect_page(name: str) -> str:
    """Return the page of the dialect ``name`` as Markdown."""
    dialect = dialect_named(name)
    return _page(_DIALECT_HEAD.format(name=name, title=dialect.title), dialect.top)


def _page(head: str, top: Section) -> str:
    lines = [head, "## Top", "", *_table(top)]
    known: dict[str, str] = {}
    for key in top.keys:
        lines += _pages(key, 2, known)
    return "\n".join(lines) + "\n"


def _pages(key: KeyInfo, level: int, known: dict[str, str]) -> list[str]:
    """Return the lines on the sections that ``key`` can hold, and on the sections inside; none for a plain value."""
    if not key.kinds:
        return []
    lines = ["", f"{'#' * level} `{key.path}`"]
    if "" not in key.kinds or key.description != key.kinds[""].summary:
        lines += ["", _sentence(key.description)]
    shape = repr(
        [(kind, section.summary, [inner.name for inner in section.keys]) for kind, section in key.kinds.items()]
    )
    if shape in known:
        return [*lines, "", f"The same as [`{known[shape]}`](#{_anchor(known[shape])})."]
    known[shape] = key.path
    if key.default_kind:
        lines += ["", f"Kinds: {_kinds(key)}; `{key.default_kind}` when not given."]
    elif "" not in key.kinds:
        lines += ["", f"Kinds: {_kinds(key)}; each must say its own."]
    for kind, section in key.kinds.items():
        lines += ["", *([f"**`kind: {kind}`** — {section.summary}"] if kind else [section.summary]), ""]
        lines += _table(section)
    for section in key.kinds.values():
        for inner in section.keys:
            lines += _pages(inner, min(level + 1, 4), known)
    return lines


def _kinds(key: KeyInfo) -> str:
    return ", ".join(f"`{kind}`" for kind in key.kinds)


def _anchor(path: str) -> str:
    return "".join(letter for letter in path if letter.isalnum() or letter == "_")


def _table(section: Section) -> list[str]:
    keys = [key for key in section.keys if key.name != "kind"]
    if not keys:
        return ["No keys besides `kind`."]
    if section.translates:
        return _dialect_table(keys)
    rows = ["| key | type | unit | default | meaning |", "|---|---|---|---|---|"]
    for key in keys:
        default = "**required**" if key.required else shown_default(key)
        if key.path == "name":
            default = "the file's name"
        bounds = ", ".join(key.constraints)
        cells = (
            f"`{key.name}`",
            key.type + (f", {bounds}" if bounds else ""),
            key.unit,
            default,
            _sentence(key.description),
        )
        rows.append(_row(cells))
    return rows


def _dialect_table(keys: list[KeyInfo]) -> list[str]:
    rows = ["| key | type | default | meaning | sets |", "|---|---|---|---|---|"]
    for key in keys:
        default = "**required**" if key.required else "" if key.default is None else shown_default(key)
        meaning = _sentence(
            " ".join((_sentence(key.description), *(f"{word}: {text}." for word, text in notes_of(key))))
        )
        sets = ", ".join(f"`{path}`" for path in key.role.native)
        name = f"`{key.name}`" + ("" if key.role.documented else " °")
        rows.append(_row((name, key.accepts, default, meaning, sets)))
    return rows


def notes_of(key: KeyInfo) -> list[tuple[str, str]]:
    """Return remarks on a dialect's key: other names, and why it has no effect or is refused."""
    role = key.role
    noop = f" ({' or '.join(map(as_yaml, role.noop_values))} is accepted)" if role.noop_values else ""
    notes = [
        ("Also", ", ".join(f"`{alias}`" for alias in key.aliases)),
        ("No effect", role.no_effect),
        ("Refused", role.unsupported and role.unsupported + noop),
    ]
    return [(word, text) for word, text in notes if text]


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def shown_default(key: KeyInfo) -> str:
    """Return the default of ``key`` for a table: a section's kind, or a value as YAML."""
    if "" in key.kinds and not key.repeated:
        return "see below"
    if key.kinds and not key.repeated:
        return f"`{key.default_kind}`" if key.default_kind else "see below"
    return f"`{as_yaml(key.default)}`" if key.default is not None or not key.role.native else "none"


def as_yaml(value: object) -> str:
    """Return a value of the schema on one line, as in a run file."""
    if is_list(value):
        return f"[{', '.join(as_yaml(inner) for inner in value)}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return '""' if value == "" else str(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(reference_page(), end="")
    for name in NAMES if len(sys.argv) > 1 else ():
        (Path(sys.argv[1]) / f"{name}-keys.md").write_text(dialect_page(name), encoding="utf-8")
