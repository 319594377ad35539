"""What a model can do besides reading one text from its beginning."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Abilities:
    """Ways of reading that give what plain reading gives: one text alone, whole, from its beginning.

    ``cache``: token by token, with what is kept of the text before. ``batch``: so in rows, the shorter ones with
    padding on the left. ``static``: so in a cache of one shape. ``reorder``: after the rows of the cache were exchanged
    or repeated. ``shared``: several tokens at once after a beginning that was read once for several rows. ``filled``:
    whole rows of which the shorter ones have something on the right. ``documents``: several texts in one row, told
    apart by their positions.

    ``boundary`` is the longest text, in tokens, that is read with the first set of positions, where a model has another
    set for longer ones: what holds, holds for texts on one side of it. ``positions`` says how the model counts where it
    is told no positions: from zero; from the number after its padding id, passing over that id; or in a way of its own,
    so that it must not be told.
    """

    cache: bool = True
    batch: bool = True
    static: bool = True
    reorder: bool = True
    shared: bool = True
    filled: bool = True
    documents: bool = True
    causal: bool = True
    boundary: int | None = None
    positions: Literal["from zero", "after padding id", "own"] = "from zero"

    def together(self, length: int) -> Hashable:
        """Texts for which this is equal may be read in one pass, each whole, with whatever fills up the shorter."""
        return self.beyond(length) if self.filled else length

    def beyond(self, length: int) -> bool:
        """Whether a text of ``length`` tokens is read with the second set of positions."""
        return self.boundary is not None and length > self.boundary

    def slower(self) -> list[str]:
        """What a model does in a slower way than others, so that it is right."""
        found: list[str] = []
        if not self.cache:
            found.append("reads all of a text anew for each token that it writes, for its cache gives other logits")
        elif not self.batch:
            found.append("reads texts of different lengths apart, for padding changes their logits")
        if self.cache and not self.reorder:
            found.append("reads all beams anew for each token, for the rows of its cache cannot be exchanged")
        if not self.static:
            found.append("has no cache of one shape (--static-cache)")
        if self.boundary is not None:
            found.append(
                f"has other positions for texts of more than {self.boundary:,} tokens, so that a text which grows "
                "beyond that is read anew there, and shorter and longer texts are read apart"
            )
        elif not self.shared:
            found.append("reads the question of a benchmark anew for each of its answers")
        return found
