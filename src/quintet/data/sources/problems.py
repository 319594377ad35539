"""Rows and files that do not become documents."""

from __future__ import annotations


class Unwanted(Exception):
    """What the run file leaves out; the message is the reason to count by."""


class BadRow(Exception):
    """What is wrong with a row: a ``reason`` to count by, and a message without its place."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
