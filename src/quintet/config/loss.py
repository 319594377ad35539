"""The kinds of `loss`: the objective of the training."""

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key


class _Loss(ConfigSection):
    label_smoothing: float = key(
        0.0, "share of the target that is spread evenly over all ids (Szegedy et al. 2016)", unit="fraction", ge=0, lt=1
    )
    z_loss: float = key(
        0.0, "weight of the squared log of the softmax's denominator (Chowdhery et al. 2022)", unit="factor", ge=0
    )
    ignore_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = key(
        (), "ids that are never predicted: they have no loss as targets", unit="ids"
    )
    ignore_token_range: tuple[int, int] | None = key(
        None, "first and last id, inclusive, of a range of ids that are never predicted", unit="ids"
    )
    chunk: int | None = key(
        None,
        "tokens whose logits are in memory at once; when not given, as many as fit in 256 MB (32 MB on a CPU)",
        unit="tokens",
        ge=1,
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for an empty range of ids."""
        if self.ignore_token_range is not None and not 0 <= self.ignore_token_range[0] <= self.ignore_token_range[1]:
            first, last = self.ignore_token_range
            yield config_error(
                "ignore_token_range", f"{first} to {last} contains no id; give the lowest and the highest one"
            )


class NextTokenLossConfig(_Loss):
    """Cross-entropy of each next token."""

    kind: Literal["next_token"] = key("next_token", "predict each next token")


class MaskedLossConfig(_Loss):
    """Cross-entropy of hidden tokens, as in BERT (Devlin et al. 2019); the other tokens have no loss."""

    kind: Literal["masked"] = key(..., "predict hidden tokens")
    predict_at: Literal["before", "own"] = key(
        "before",
        "position that predicts a hidden token. before: the position before it, as for a next token (BehnamGhader et "
        "al. 2024); own: its own (Devlin et al. 2019)",
    )
    fraction: float = key(0.15, "share of the tokens that are predicted", unit="fraction", gt=0, le=1)
    masked: float = key(0.8, "share of the predicted tokens that the mask replaces", unit="fraction", ge=0, le=1)
    random: float = key(
        0.1,
        "share of the predicted tokens that a random token replaces; the rest stay as they are",
        unit="fraction",
        ge=0,
        le=1,
    )
    mask_id: int | None = key(
        None,
        "id of the mask; when not given, an additional row of the embedding that is never predicted",
        unit="id",
        ge=0,
    )

    def errors(self) -> ConfigErrors:
        """Yield the errors of any loss, and one for shares that sum to more than 1."""
        yield from super().errors()
        if self.masked + self.random > 1 + 1e-9:
            yield config_error(
                "random", f"masked and random sum to {self.masked + self.random:g}; they must sum to at most 1"
            )


LossConfig = Annotated[NextTokenLossConfig | MaskedLossConfig, Field(discriminator="kind")]
