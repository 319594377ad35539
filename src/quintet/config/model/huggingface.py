"""A model of Hugging Face's library, as it is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from quintet.config.section import ConfigSection, config_error, key


class LoraConfig(ConfigSection):
    """Low-rank adapters (Hu et al. 2022) beside frozen weights, through peft."""

    rank: int = key(16, "rank of the update of a matrix", unit="dimensions", ge=1)
    alpha: float = key(32.0, "the update is scaled by alpha / rank", unit="factor", gt=0)
    dropout: float = key(0.0, "dropout on what enters the adapters", unit="probability", ge=0, lt=1)
    targets: tuple[str, ...] | None = key(
        ("all-linear",),
        "names of the modules that get one; all-linear stands for all but the head, null for those that peft takes for "
        "the model's family",
        min_length=1,
    )


class HuggingFaceConfig(ConfigSection):
    """Any causal language model of the transformers library, trained as it is (needs the `hf` extra)."""

    kind: Literal["huggingface"] = key(..., "a model of the transformers library")
    name_or_path: str = key(
        ...,
        "folder of the checkpoint, its name on the hub, or with `pretrained: false` a type of models, such as gpt2",
        min_length=1,
    )
    revision: str | None = key(None, "branch, tag or commit on the hub; the main branch when not given")
    pretrained: bool = key(True, "load its weights; false starts from random ones, with its configuration alone")
    config: dict[str, Any] = key({}, "values that replace those of the checkpoint's config.json")
    context_length: int | None = key(
        None, "most positions the model is used for; data.sequence_length when not given", unit="tokens", ge=2
    )
    freeze: Literal["none", "core"] = key(
        "none", "core: only the embedding and the head are trained, what lies between them stays as it is"
    )
    lora: LoraConfig | None = key(None, "train adapters instead of the weights themselves")
    attention_backend: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] = (
        key("auto", "what computes its attention; auto leaves the choice to transformers")
    )
    gradient_checkpointing: bool = key(
        False, "keep only what enters each layer and compute the rest again in the backward pass"
    )
    dropout: float | None = key(
        None, "rate of all its dropouts; as its configuration says when not given", unit="probability", ge=0, lt=1
    )
    trust_remote_code: bool = key(False, "run the Python code that lies beside the checkpoint")

    other_base: bool = key(
        False, "take the checkpoint although it is not the one, by its digest, that the run began with"
    )
    documents: bool = key(False, "documents packed in one sequence do not see one another, and positions restart")

    @property
    def tells_documents(self) -> bool:
        """Whether the mask depends on where documents end."""
        return self.documents

    @property
    def tells_prompts(self) -> bool:
        """Whether the mask depends on where the prompts of documents end: these models see backwards only."""
        return False

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> HuggingFaceConfig:
        if self.lora is not None and self.freeze != "none":
            raise config_error("freeze", "lora freezes all weights but its own already; leave freeze out")
        return self
