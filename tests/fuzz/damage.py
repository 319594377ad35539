"""Damage to files: bytes are cut, turned, put in, zeroed or doubled, and values of JSON are something else."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Step = tuple[str, int, Any]
"""What is done, where (a number of a byte or a value, of whatever there is), and with what."""

_NUMBERS = (-1, 0, 2**31, 2**40, 2**62)
_WORDS = {
    "no quotes": (b'"', b""),
    "no colon": (b":", b"="),
    "open": (b"}", b""),
    "twice open": (b"{", b"{{"),
    "deep": (b"[", b"[" * 100_000),
    "endless": (b"1", b"1" * 6000),
    "half a pair": (b"e", b"\xed\xa0\x80"),
    "surrogate": (b"u", b"\\ud800"),
    "text for truth": (b"true", b'"x"'),
    "objects": (b"<u2", b"|O8"),
    "floats": (b"<u2", b"<f8"),
    "no bracket": (b")", b""),
}
VALUES = st.sampled_from([None, -1, 0, 1.5, 1e308, "x", "", [], {}, True, [1], {"a": None}, 10**6, 10**12, 10**30])


def _places() -> st.SearchStrategy[int]:
    return st.integers(0, 200) | st.integers(0, 1 << 20)  # headers are at the beginning


STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), _places(), st.none()),
        st.tuples(st.just("turn"), _places(), st.integers(0, 7)),
        st.tuples(st.just("put in"), _places(), st.binary(min_size=1, max_size=100)),
        st.tuples(st.just("zero"), _places(), st.none()),
        st.tuples(st.just("number"), _places(), st.sampled_from(_NUMBERS)),
        st.tuples(st.just("double"), st.just(0), st.none()),
        st.tuples(st.just("noise"), st.just(0), st.binary(max_size=300)),
        st.tuples(st.just("words"), _places(), st.sampled_from(sorted(_WORDS))),
        st.tuples(st.just("value"), _places(), VALUES),
        st.tuples(st.just("leave out"), _places(), st.none()),
    ),
    min_size=1,
    max_size=3,
)


def damage(file: Path, steps: list[Step]) -> None:
    """Do all ``steps`` to ``file``; values of JSON are changed in what is JSON alone."""
    data = file.read_bytes()
    for what, where, how in steps:
        data = _damaged(data, what, where, how)
    file.unlink()
    file.write_bytes(data)


def _damaged(data: bytes, what: str, where: int, how: Any) -> bytes:
    at = where % (len(data) + 1)
    match what:
        case "cut":
            return data[:at]
        case "turn":
            return data[:at] + bytes([data[at] ^ 1 << how]) + data[at + 1 :] if at < len(data) else data
        case "put in":
            return data[:at] + how + data[at:]
        case "zero":
            return data[:at] + bytes(len(data) - at)
        case "number":
            return data[:at] + struct.pack("<q", how) + data[at + 8 :]
        case "double":
            return data + data
        case "noise":
            return how
        case "words":
            return data[:at] + data[at:].replace(*_WORDS[how], 1)
    return _with_value(data, where, how, leave_out=what == "leave out")


def _with_value(data: bytes, where: int, value: Any, *, leave_out: bool) -> bytes:
    """``data``, if it is JSON, with another value at one of its places, or without that."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_places_in(content))
    if not places:
        return data
    holder, key = places[where % len(places)]
    if leave_out:
        del holder[key]
    else:
        holder[key] = value
    return json.dumps(content).encode()


def _places_in(content: Any) -> Any:
    """Each value within ``content``, as what holds it and its key there; those of long lists from their first on."""
    found = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, inner in list(found)[:50]:
        yield content, key
        yield from _places_in(inner)
