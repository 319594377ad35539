"""What a key of a dialect means, looked up by its path or the end of it."""

from __future__ import annotations

from quintet.config.dialects.pages import default_of, native_of
from quintet.config.dialects.table import Key, TableDialect, pattern
from quintet.errors import UserError, nearest


def explain(dialect: TableDialect, query: str | None) -> list[str]:
    """Lines on each key of ``dialect`` that ``query`` names, on all keys in brief when it is None.

    Raises UserError with the nearest key when there is none.
    """
    if query is None:
        width = max(len(key.path) for key in dialect.keys)
        return [f"{key.path:{width}}  {key.help}" for key in dialect.keys]
    wanted = pattern(query.strip())
    found = [key for key in dialect.keys if any(_ends(path, wanted) for path in (key.path, *key.aliases))]
    if not found:
        known = {key.path for key in dialect.keys} | {key.name for key in dialect.keys}
        like = nearest(query, sorted(known))
        mend = f"did you mean {like}?" if like else f"`quintet explain --dialect {dialect.name}` lists all keys"
        raise UserError(f"{query!r} is no key of {dialect.title}; {mend}")
    lines: list[str] = []
    for key in found:
        lines += [*([""] if lines else []), *_lines(key, dialect)]
    return lines


def _ends(path: str, wanted: tuple[str, ...]) -> bool:
    steps = tuple(step for step in pattern(path) if step != "[]")
    wanted = tuple(step for step in wanted if step != "[]" and not step.isdecimal())
    return steps[-len(wanted) :] == wanted


def _lines(key: Key, dialect: TableDialect) -> list[str]:
    source = f"{dialect.title}'s document" if key.documented else f"files of {dialect.title}"
    lines = [key.path, f"  {key.help}", f"  value:   {key.value.words.replace('`', '')}"]
    lines.append(f"  default: {default_of(key).strip('`') or 'none'}")
    if native_of(key):
        lines.append(f"  sets:    {', '.join(native_of(key))}")
    if key.aliases:
        lines.append(f"  also:    {', '.join(key.aliases)}")
    for word, text in (("no effect", key.no_effect), ("refused", key.refused)):
        lines += [f"  {word}: {text}"] if text else []
    lines += [f"  pending: {key.pending} is not built yet"] if key.pending else []
    return [*lines, f"  from:    {source}"]
