"""What a source yields: a document as text, as texts of which some are learnt, or as tokens; and what it left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class TextParts:
    """A document of several texts, encoded as one; ``loss_mask`` says of which the tokens have a loss.

    A token that stands for characters of two texts has a loss if one of them has. The end id after the last text is
    learnt if that text is. With ``template`` the text of a special token is its id, as a chat template writes it.
    ``ends`` are ids that end the document as well as the end id, white space behind them or not.
    """

    texts: tuple[str, ...]
    loss_mask: tuple[bool, ...]
    template: bool = False
    ends: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.loss_mask)

    @property
    def whole(self) -> str:
        """All of the text."""
        return "".join(self.texts)


@dataclass(frozen=True)
class TextPiece:
    """A part of a long text, cut where no id changes by it; all parts but the last have ``continues``.

    ``whole`` is the text that it is a part of, where that is in memory anyway.
    """

    text: str
    continues: bool
    whole: str | None = None


@dataclass(frozen=True)
class TokenIds:
    """Tokens that are ready: ``ids`` [tokens] of any integer type.

    ``loss_mask`` bool [tokens] says which have a loss, all of them when None. A document may come in several pieces, so
    that a long one needs little memory: all but its last have ``continues``. ``place`` says where the ids stand, for
    messages. ``ends`` are ids that end the document as well as the end id, white space behind them or not; an end id
    that is added has a loss where the last token has one, and with ``learn_end``.
    """

    ids: np.ndarray
    place: str
    loss_mask: np.ndarray | None = None
    continues: bool = False
    ends: frozenset[int] = frozenset()
    learn_end: bool = True


Document = str | TextPiece | TextParts | TokenIds
"""In the store the end id stands after each; it is added where a document does not end by itself."""


@dataclass
class Report:
    """What was not read: ``left_out`` names files that cannot be read, ``dropped`` counts documents by the reason,
    and what was passed over in those that are there. ``matched`` counts what settings found: separators, end ids, rows
    with labels."""

    left_out: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    matched: Counter[str] = field(default_factory=Counter)
