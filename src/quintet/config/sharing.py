"""Matrices that several blocks of the transformer share, as they are or with a low-rank difference of each block."""

from __future__ import annotations

from typing import Literal

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

SharedPart = Literal["feedforward", "attention_qkv", "attention_output"]
"""A part of a block that blocks can share: the feed-forward network, the projection of the attention to queries, keys
and values, and its output projection."""

How = Literal["own", "same", "low_rank"]
"""A block's part is its own, the shared one as it is, or the shared one plus a low-rank difference of its own."""


class SharingConfig(ConfigSection):
    """Blocks that share matrices. With `low_rank` a block adds to a shared matrix W its own alpha / rank · B A, where A
    has `rank` rows and B as many columns (as the adapters of Hu et al. 2022, trained from the start with W); a bias of
    that part is each block's own as well."""

    same: tuple[SharedPart, ...] = key((), "parts that are one and the same in all these blocks, with their biases")
    low_rank: tuple[SharedPart, ...] = key(
        (), "parts whose matrices are one for all these blocks, and to which each block adds a difference of its own"
    )
    first_blocks: int = key(0, "blocks at the beginning that keep their own parts", unit="blocks", ge=0)
    last_blocks: int = key(0, "blocks at the end that keep their own parts", unit="blocks", ge=0)
    rank: int = key(16, "rank of a difference", unit="dimensions", ge=1)
    alpha: float | None = key(
        None, "a difference is scaled by alpha / rank; rank when not given, so by 1", unit="factor", gt=0
    )
    bias: bool = key(False, "biases after A and after B")

    def errors(self) -> ConfigErrors:
        """Yield an error for a part that is shared in two ways, and for none at all."""
        if twice := [part for part in self.same if part in self.low_rank]:
            yield config_error("low_rank", f"{twice[0]} is in same as well; keep one of the two")
        if not self.same and not self.low_rank:
            yield config_error("same", "nothing is shared; name a part in same or in low_rank, or leave sharing out")

    @property
    def scale(self) -> float:
        """Factor on a difference."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def misfits(self, layers: int, tied: dict[SharedPart, bool]) -> ConfigErrors:
        """Yield an error for a model of ``layers`` blocks in which fewer than two share, or where a part is ``tied`` in
        all blocks already."""
        if layers - self.first_blocks - self.last_blocks < 2:
            blocks = f"{self.first_blocks} + {self.last_blocks} blocks of {layers}"
            yield config_error("sharing.first_blocks", f"{blocks} keep their own parts, and no two are left to share")
        for part in (*self.same, *self.low_rank):
            if tied.get(part, False):
                yield config_error(f"tie_{part}", f"sharing names {part} too; leave one of the two out")

    def how(self, part: SharedPart, block: int, layers: int) -> How:
        """The way in which ``block`` of ``layers``, counted from 0, has its ``part``."""
        if not self.first_blocks <= block < layers - self.last_blocks:
            return "own"
        return "same" if part in self.same else "low_rank" if part in self.low_rank else "own"
