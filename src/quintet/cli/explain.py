"""`quintet explain`, `schema` and `translate`: the keys of run files, and the native form of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quintet import api
from quintet.cli.inputs import Inputs, echo, load

if TYPE_CHECKING:
    from rich.tree import Tree

    from quintet.config.describe import KeyInfo, Section
    from quintet.config.find import Found


def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            help="a key such as optimizer.lr, schedule.wsd or lr; all keys when not given", show_default=False
        ),
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="a key of this dialect: phyagi, vectorlm, stlm, tmrc or piano")
    ] = None,
) -> None:
    """Explain a key of the run file: type, unit, default, bounds, meaning, and the kinds it may have."""
    if dialect is not None:
        from quintet.config.dialects import dialect_named

        chosen = dialect_named(dialect)
        _explain(key, chosen.top, f"run file of {chosen.title}")
        return
    from quintet.config.describe import run_file

    _explain(key, run_file(), "run file")


def _explain(key: str | None, top: Section, title: str) -> None:
    """Describe ``key`` of the file ``top``, or list all keys if it is None."""
    from rich.console import Console

    from quintet.config.find import find

    if key is None:
        Console(highlight=False).print(_tree(top, title))
        return
    echo("\n\n".join("\n".join(_lines(found)) for found in find(key, top)))


def _lines(found: Found) -> list[str]:
    """Return the lines on one key, or on one kind of a section."""
    from quintet.config.reference import notes_of, shown_default

    key, section = found.key, found.section
    if section is not None:
        return [f"{key.path}, kind {section.kind}: {section.summary}", *_keys(section, "  ")]
    lines = [key.path + (f"  (kind {', '.join(found.kinds)})" if found.kinds else ""), f"  {key.description}"]
    lines.append(f"  type:    {key.type}{''.join(f', {bound}' for bound in key.constraints)}")
    if key.unit:
        lines.append(f"  unit:    {key.unit}")
    if key.path == "name":
        lines.append("  default: the name of the run file without its ending")
    elif key.required:
        lines.append("  default: none, it must be given")
    elif "" not in key.kinds:
        lines.append(f"  default: {shown_default(key).strip('`')}")
    if key.role.native:
        lines.append(f"  sets:    {', '.join(key.role.native)}")
    lines += [f"  {f'{word.lower()}:':8} {text}".replace("`", "") for word, text in notes_of(key)]
    if not key.role.documented:
        lines.append("  from:    files of the framework, not its document")
    for kind, inner in key.kinds.items():
        lines += [f"  kind {kind}: {inner.summary}"] if kind else []
        lines += _keys(inner, "    ")
    return lines


def _keys(section: Section, indent: str) -> list[str]:
    keys = [key for key in section.keys if key.name != "kind"]
    width = max((len(key.name) for key in keys), default=0)
    return [f"{indent}{key.name:{width}}  {_brief(key)}" for key in keys]


def _brief(key: KeyInfo) -> str:
    """Return a line on a key: meaning, unit, default."""
    from quintet.config.reference import shown_default

    default = "must be given" if key.required else f"default {shown_default(key).strip('`')}"
    if key.path == "name" or "" in key.kinds:
        default = ""
    notes = ", ".join(note for note in (key.unit, default) if note)
    return key.description + (f" [{notes}]" if notes else "")


def _tree(top: Section, title: str) -> Tree:
    """Return all keys of the file ``top``, each with a line; kinds are branches."""
    from rich.text import Text
    from rich.tree import Tree

    shown: dict[str, str] = {}  # a section that occurs twice is written out once

    def grow(branch: Tree, section: Section) -> None:
        for key in section.keys:
            if key.name == "kind":
                continue
            twig = branch.add(Text.assemble((key.name, "bold"), "  ", (_brief(key), "dim")))
            shape = " ".join(inner.summary for inner in key.kinds.values())
            if shape and shown.setdefault(shape, key.path) != key.path:
                twig.add(Text(f"as {shown[shape]}"))
                continue
            for kind, inner in key.kinds.items():
                grow(
                    twig.add(Text.assemble("kind ", (kind, "bold cyan"), f"  {inner.summary}")) if kind else twig, inner
                )

    root = Tree(Text(title))
    grow(root, top)
    return root


def schema(
    dialect: Annotated[
        str | None, typer.Option(help="of files of this dialect: phyagi, vectorlm, stlm, tmrc or piano")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="write to this file instead of standard output")] = None,
) -> None:
    """Print the JSON Schema of the run file, by which an editor completes and checks it."""
    from quintet.config.dialects import dialect_named
    from quintet.config.json_schema import dialect_schema, run_file_schema

    values = run_file_schema() if dialect is None else dialect_schema(dialect_named(dialect))
    text = json.dumps(values, indent=2, ensure_ascii=False)
    if output is None:
        echo(text)
        return
    output.write_text(text + "\n", encoding="utf-8")
    echo(f"wrote {output}")


def translate(
    inputs: Inputs,
    to: Annotated[
        str | None, typer.Option(metavar="DIALECT", help="write a file of this dialect instead of a native one")
    ] = None,
) -> None:
    """Print a run file in its native form, with the key and line that set each value.

    With --to it is written in a dialect; what that dialect cannot express is listed on standard error.
    """
    config = load(inputs, may_lack=True)
    loaded = api.loaded_of(config)
    assert loaded is not None
    for line in api.lines_not_here(map(str, loaded.not_here)):
        typer.echo(line, err=True)
    if to is None:
        from quintet.config.dump import dump_with_origins

        for note in loaded.notes:
            echo(f"note: {note}", err=True)
        echo(dump_with_origins(config, loaded.provenance), nl=False, exact=True)
        return
    from quintet.config.dialects import dialect_named
    from quintet.config.dialects.back import translate_back

    written = translate_back(dialect_named(to), config)
    echo(written.text, nl=False, exact=True)
    for line in written.lost:
        echo(f"not expressed in {to}: {line}", err=True)
