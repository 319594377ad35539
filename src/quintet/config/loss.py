"""The objective: what a model learns to predict."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key


class _Loss(ConfigSection):
    label_smoothing: float = key(
        0.0, "part of the target that is spread evenly over all ids (Szegedy et al. 2016)", unit="fraction", ge=0, lt=1
    )
    z_loss: float = key(
        0.0, "weight of the squared log of the softmax's denominator (Chowdhery et al. 2022)", unit="factor", ge=0
    )
    ignore_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = key(
        (), "ids that are never predicted: no loss on them", unit="ids"
    )
    ignore_token_range: tuple[int, int] | None = key(
        None, "ids from the first to the last, both counted, that are never predicted", unit="ids"
    )
    chunk: int | None = key(
        None,
        "tokens whose logits are in memory at once; when not given, as many as fit 256 MB (32 MB on a CPU)",
        unit="tokens",
        ge=1,
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for a range without ids."""
        if self.ignore_token_range is not None and not 0 <= self.ignore_token_range[0] <= self.ignore_token_range[1]:
            first, last = self.ignore_token_range
            yield config_error(
                "ignore_token_range", f"{first} to {last} holds no id; give the lowest and the highest one"
            )


class NextTokenLossConfig(_Loss):
    """Cross-entropy of each token given those that its position may see."""

    kind: Literal["next_token"] = key("next_token", "predict each next token")


class MaskedLossConfig(_Loss):
    """Some tokens of the input are hidden, as in BERT, and predicted; the others have no loss."""

    kind: Literal["masked"] = key(..., "predict hidden tokens")
    predict_at: Literal["before", "own"] = key(
        "before",
        "position that predicts a hidden token: the one before it, as a next token (BehnamGhader et al. 2024), or its "
        "own (Devlin et al. 2019)",
    )
    fraction: float = key(0.15, "part of the tokens that is to be predicted", unit="fraction", gt=0, le=1)
    masked: float = key(0.8, "part of these that the mask stands for", unit="fraction", ge=0, le=1)
    random: float = key(
        0.1, "part of these that a random token stands for; the rest stays as it is", unit="fraction", ge=0, le=1
    )
    mask_id: int | None = key(
        None, "id of the mask; one more row of the embedding, never predicted, when not given", unit="id", ge=0
    )

    def errors(self) -> ConfigErrors:
        """Yield those of any loss, and one for shares that are more than the whole."""
        yield from super().errors()
        if self.masked + self.random > 1 + 1e-9:
            yield config_error(
                "random", f"masked and random are {self.masked + self.random:g} together; at most 1 fits"
            )


LossConfig = Annotated[NextTokenLossConfig | MaskedLossConfig, Field(discriminator="kind")]
