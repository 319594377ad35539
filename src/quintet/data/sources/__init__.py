"""Where documents come from: what a source names, how it is cut into work units, and how these are read."""

from __future__ import annotations

from quintet.data.sources.check import check_sources

__all__ = ["check_sources"]
