"""Prepared data in the formats of other frameworks."""

from __future__ import annotations

from quintet.data.formats.write import FORMATS, write_format

__all__ = ["FORMATS", "write_format"]
