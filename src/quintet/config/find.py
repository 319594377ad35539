"""A search for keys by what users type: ``optimizer.lr``, ``data.sources.text.path``, ``schedule.wsd``, ``lr``."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from quintet.config.describe import KeyInfo, Section, run_file, walk
from quintet.errors import UserError


@dataclass(frozen=True)
class Found:
    """A key, or the ``section`` of one kind that it can hold. ``kinds`` are the kinds of the section around the key
    that have it; empty if that section has no kinds."""

    key: KeyInfo
    section: Section | None = None
    kinds: tuple[str, ...] = ()


def find(query: str, top: Section | None = None) -> list[Found]:
    """Return the keys that ``query`` names from the ``top`` of a file (of a native run file if None), or, if there are
    none, from any section.

    Kinds and indices may be omitted; a key that is the same in several kinds is returned once. Raises UserError with
    the nearest names if no key fits.
    """
    wanted = [step for step in re.split(r"[.\[\]]+", query.strip()) if step and not step.isdecimal()]
    addresses = list(_addresses(top)) if top else _native_addresses()
    found = [match for steps, match in addresses if _fits(steps, wanted)]
    if not found:
        found = [match for steps, match in addresses if any(_fits(steps[at:], wanted) for at in range(1, len(steps)))]
    if not found or not wanted:
        raise UserError(_not_found(query, wanted, top or run_file()))
    return _joined(found)


@cache
def _native_addresses() -> list[tuple[list[tuple[str, bool]], Found]]:
    return list(_addresses(run_file()))


def _addresses(top: Section) -> Iterator[tuple[list[tuple[str, bool]], Found]]:
    """Yield everything that can be found, with the steps to it, each with True if it may be omitted."""

    def visit(section: Section, steps: list[tuple[str, bool]]) -> Iterator[tuple[list[tuple[str, bool]], Found]]:
        for key in section.keys:
            if key.name == "kind":
                continue
            here = [*steps, (key.name, False)]
            yield here, Found(key)
            if key.kinds and "" not in key.kinds:
                yield [*here, ("kind", False)], Found(key)
            for kind, inner in key.kinds.items():
                if kind:
                    yield [*here, (kind, False)], Found(key, inner)
                yield from visit(inner, [*here, (kind, True)] if kind else here)

    yield from visit(top, [])


def _fits(steps: list[tuple[str, bool]], wanted: list[str]) -> bool:
    if not steps:
        return not wanted
    (name, optional), rest = steps[0], steps[1:]
    return bool(wanted and wanted[0] == name and _fits(rest, wanted[1:])) or (optional and _fits(rest, wanted))


def _joined(found: list[Found]) -> list[Found]:
    """Join keys that differ only in the kind of the section around them."""
    groups: dict[str, list[Found]] = {}
    for match in found:
        key = match.key
        same = (key.path, key.type, key.unit, key.required, key.default, key.constraints, key.description)
        groups.setdefault(f"{same} {match.section and match.section.kind} {key.within[:-1]}", []).append(match)
    return [Found(group[0].key, group[0].section, _kinds(group)) for group in groups.values()]


def _kinds(group: list[Found]) -> tuple[str, ...]:
    return tuple(match.key.within[-1][1] for match in group if match.key.within)


def _not_found(query: str, wanted: list[str], top: Section) -> str:
    paths = list(dict.fromkeys(key.path.replace("[]", "") for key in walk(top)))
    names = {path.rpartition(".")[2]: path for path in reversed(paths)}
    typed = ".".join(wanted)
    near = difflib.get_close_matches(typed, paths, n=3, cutoff=0.6)
    near += [names[name] for name in difflib.get_close_matches(wanted[-1] if wanted else "", list(names), n=3)]
    suggestion = f"did you mean {' or '.join(dict.fromkeys(near[:3]))}?" if near else "`quintet explain` lists all keys"
    return f"{query!r} is no key of {'a file of the dialect' if top.translates else 'the run file'}; {suggestion}"
