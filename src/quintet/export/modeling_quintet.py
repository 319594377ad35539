"""Quintet's transformer as a model of the transformers library.

An export copies this file beside the weights of an architecture for which the library has no class; it needs
`pip install quintet`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, MaskedLMOutput

from quintet.config.model import TransformerConfig
from quintet.model import Transformer
from quintet.model.typed import as_list, named_modules


class QuintetConfig(PretrainedConfig):
    """The configuration: ``model`` is the `model` section of the run file; the first ``predicted_ids`` of the
    ``vocab_size`` rows of the embedding can be predicted."""

    model_type = "quintet"

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        vocab_size: int = 1,
        max_position_embeddings: int = 1,
        predicted_ids: int = 1,
        **others: Any,
    ) -> None:
        self.model = model or {}
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.predicted_ids = predicted_ids
        self.use_cache = False
        super().__init__(**others)


class _Quintet(PreTrainedModel):
    config_class = QuintetConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"

    def __init__(self, config: QuintetConfig) -> None:
        super().__init__(config)  # pyright: ignore[reportUnknownMemberType]  (open in transformers)
        self.transformer = self._build()
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.transformer.embedding

    def _build(self) -> Transformer:
        ids, rows = self.config.predicted_ids, self.config.vocab_size
        part = TransformerConfig.model_validate({**self.config.model, "pad_vocab_size_multiple": 1})
        return Transformer(part, ids, self.config.max_position_embeddings, rows - ids)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Compute sines and cosines, which no checkpoint holds, after a module has left the meta device."""
        if next(module.buffers(recurse=False), None) is None:
            return
        name = next(name for name, part in named_modules(self.transformer) if part is module)
        fresh = dict(self._build().get_submodule(name).named_buffers(recurse=False))
        with torch.no_grad():
            for leaf, buffer in module.named_buffers(recurse=False):
                buffer.copy_(fresh[leaf])

    def _logits(self, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return logits [batch, length, predicted_ids]; ``attention_mask`` [batch, length] is 0 for padding on the
        left."""
        if attention_mask is None or bool(attention_mask.all()):
            return self.transformer(ids)
        padding = attention_mask.shape[1] - attention_mask.sum(1)
        on_the_left = torch.arange(ids.shape[1], device=ids.device) >= padding[:, None]
        if not torch.equal(on_the_left, attention_mask.bool()):
            raise ValueError("Quintet's models take padding on the left only: set tokenizer.padding_side = 'left'")
        if self.transformer.config.attention.kind == "bidirectional":
            raise ValueError("bidirectional attention takes no padding: give texts of one length at a time")
        cache = self.transformer.start_cache(*ids.shape, padding=as_list(padding))
        return self.transformer.logits(self.transformer.hidden(ids, cache=cache))


class QuintetForCausalLM(_Quintet, GenerationMixin):
    """Logits of the next token; ``labels`` are shifted as the library's own models do."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        logits = self._logits(input_ids, attention_mask)
        return CausalLMOutput(loss=_loss(logits, labels), logits=logits)

    def prepare_inputs_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Return the whole text each time, because this class has no cache; `quintet generate` has one."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class QuintetForMaskedLM(_Quintet):
    """Logits of the token after each position: position i predicts the token at i + 1, which is masked in the input."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> MaskedLMOutput:
        logits = self._logits(input_ids, attention_mask)
        return MaskedLMOutput(loss=_loss(logits, labels), logits=logits)


def _loss(logits: Tensor, labels: Tensor | None) -> Any:
    """Return the mean loss of the ``labels`` [batch, length] that are not -100, each predicted one position before."""
    if labels is None:
        return None
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
