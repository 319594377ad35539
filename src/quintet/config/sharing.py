"""The section `model.sharing`: matrices that blocks share, unchanged or with a low-rank difference per block."""

from typing import Literal

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

SharedPart = Literal["feedforward", "attention_qkv", "attention_output"]
"""A part that blocks can share: the feed-forward network, the projection to queries, keys and values, and the output
projection of the attention."""

How = Literal["own", "same", "low_rank"]
"""A block has a part of its own, the shared part, or the shared part plus a low-rank difference of its own."""


class SharingConfig(ConfigSection):
    """Blocks that share matrices. With `low_rank` a block adds alpha / rank · B A of its own to a shared matrix W,
    where A has `rank` rows and B as many columns, as the adapters of Hu et al. (2022), but trained together with W from
    the start. The biases of such a part are each block's own, too."""

    same: tuple[SharedPart, ...] = key((), "parts that these blocks share unchanged, including biases")
    low_rank: tuple[SharedPart, ...] = key(
        (), "parts whose matrices these blocks share, each block adding a low-rank difference of its own"
    )
    first_blocks: int = key(0, "first blocks that have their own parts", unit="blocks", ge=0)
    last_blocks: int = key(0, "last blocks that have their own parts", unit="blocks", ge=0)
    rank: int = key(16, "rank of the differences", unit="dimensions", ge=1)
    alpha: float | None = key(
        None, "the differences are scaled by alpha / rank; equal to rank when not given", unit="factor", gt=0
    )
    bias: bool = key(False, "biases after A and after B")

    def errors(self) -> ConfigErrors:
        """Yield an error for a part that is shared in two ways, and if no part is shared."""
        if twice := [part for part in self.same if part in self.low_rank]:
            yield config_error("low_rank", f"{twice[0]} is also in same; remove it from one of the two")
        if not self.same and not self.low_rank:
            yield config_error("same", "no part is shared; name one in same or in low_rank, or remove sharing")

    @property
    def scale(self) -> float:
        """Factor on the differences."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def misfits(self, layers: int, tied: dict[SharedPart, bool]) -> ConfigErrors:
        """Yield an error if fewer than two of ``layers`` blocks share, and for each part that is ``tied`` in all blocks
        already."""
        if layers - self.first_blocks - self.last_blocks < 2:
            blocks = f"{self.first_blocks} + {self.last_blocks} blocks of {layers}"
            yield config_error(
                "sharing.first_blocks", f"{blocks} have their own parts, so that fewer than two share; lower it"
            )
        for part in (*self.same, *self.low_rank):
            if tied.get(part, False):
                yield config_error(f"tie_{part}", f"{part} is also in sharing; remove it from one of the two")

    def how(self, part: SharedPart, block: int, layers: int) -> How:
        """How ``block`` of ``layers``, counted from 0, has its ``part``."""
        if not self.first_blocks <= block < layers - self.last_blocks:
            return "own"
        return "same" if part in self.same else "low_rank" if part in self.low_rank else "own"
