from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quintet.data.sources.reading import ByteRange, cut, line_of, read, records
from quintet.errors import UserError


@given(
    data=st.text(alphabet="ab\n", max_size=200).map(str.encode),
    separator=st.sampled_from([b"\n", b"\n\n", b"aa", b"aba", b"ab"]),
    length=st.integers(1, 40),
)
@settings(max_examples=300)
def test_spans_split_one_by_one_give_what_the_whole_file_gives(data: bytes, separator: bytes, length: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        spans = cut(file.name, len(data), separator, length)
        parts = [read(span) for span in spans]
    assert b"".join(parts) == data
    expected = data.split(separator)
    if not expected[-1]:
        expected.pop()
    assert [record for part in parts for _, record in records([part], separator)] == expected


def test_a_large_file_is_cut_near_each_nominal_place(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"".join(b"%d\n" % number for number in range(200_000)))
    spans = cut(str(file), file.stat().st_size, b"\n", 100_000)
    assert len(spans) == round(file.stat().st_size / 100_000)
    assert all(100_000 <= span.size <= 100_010 for span in spans[:-1])


def test_a_separator_that_is_far_away_is_found(tmp_path: Path) -> None:
    file = tmp_path / "long"
    file.write_bytes(b"a" * 300_000 + b"<end>" + b"b" * 300_000)
    assert cut(str(file), 600_005, b"<end>", 1000) == [
        ByteRange(str(file), 0, 300_005),
        ByteRange(str(file), 300_005, 600_005),
    ]


def test_offsets_of_records_lead_back_to_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    lines = [b"one", b"", b"three", b"four"]
    file.write_bytes(b"\n".join(lines))
    found = [(line_of(str(file), offset), record) for offset, record in records([file.read_bytes()], b"\n")]
    assert found == list(enumerate(lines, 1))


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    with pytest.raises(UserError, match=re.escape(f"{file}: became shorter")):
        read(ByteRange(str(file), 0, 10))
