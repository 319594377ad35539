"""What the values of STLM's keys may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quintet.config.dialects.values import Value, choice, listed, text

EXPERIMENT = "belongs to an experiment that STLM's document leaves out, as it changes often; it is not built here"

NORMS = {"rms_norm": "rms", "layer_norm": "layer", "none": "none"}
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "leakyrelu": "leaky_relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "none": "none",
}
GAINS = {
    **{name: name for name in ("gelu", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "linear")},
    "leakyrelu": "leaky_relu",
    "none": "linear",
}
TIKTOKEN = ("gpt2", "o200k_base", "cl100k_base", "p50k_base")
ON_THE_HUB = {
    "llama_32k": "chavinlo/alpaca-native",
    "opt_50k": "facebook/opt-1.3b",
    "mistral_32k": "mistralai/Mistral-7B-v0.1",
    "llama_3.2_1B": "meta-llama/Llama-3.2-1B",
}
TOKENIZERS = {
    **{name: name for name in TIKTOKEN},
    "GPT-2": "gpt2",
    **{name: name for name in ON_THE_HUB},
    "bpe": "bpe",
    "hf": "hf",
    "hf_tokenizer": "hf",
}
OPTIMIZERS = (
    "AdamW",
    "nanoGPTadamW",
    *(
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "Adamax",
        "ASGD",
        "Muon",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    ),
)
SCHEDULES = (
    "cosine",
    "constant",
    *("StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingLR"),
    *("CosineAnnealingWarmRestarts", "CyclicLR", "OneCycleLR"),
)
MCQ = (
    *("winogrande", "hellaswag", "arc_easy", "mmlu", "blimp", "truthful_qa", "piqa", "race_middle", "race_high"),
    *("boolq", "openbook_qa_closed", "openbook_qa_open", "copa", "commonsense_qa"),
    *(f"stlm_eval_{name}" for name in ("arc_easy", "hellaswag", "truthful_qa", "winogrande")),
    *("winograd", "arc"),  # of the files before the document
)
TASKS = {name: {"winograd": "winogrande", "arc": "arc_easy"}.get(name, name) for name in MCQ}


NEWER = {
    "ArcEasy": "arc_easy",
    "Blimp": "blimp",
    "Hellaswag": "hellaswag",
    "MMLU": "mmlu",
    "Winogrande": "winogrande",
    "TruthfulQA-M2": "truthfulqa_mc2",
    "PIQA": "piqa",
    "BoolQ": "boolq",
    "RACEMiddle": "race_middle",
    "RACEHigh": "race_high",
    "OpenbookQAOpen": "openbook_qa_open",
    "OpenbookQAClosed": "openbook_qa_closed",
    "Copa": "copa",
    "CommonsenseQA": "commonsense_qa",
    **{
        f"{name}-STLMSubset": f"stlm_eval_{own}"
        for name, own in (
            ("ArcEasy", "arc_easy"),
            ("Hellaswag", "hellaswag"),
            ("Winogrande", "winogrande"),
            ("TruthfulQA-M2", "truthful_qa"),
        )
    },
}
"""Benchmarks by the names of the newest files."""


def named(known: Mapping[str, Any], experiments: Mapping[str, str] | tuple[str, ...] = ()) -> Value:
    """One of ``known`` in any case; ``experiments`` are refused by name, with what they are if that is said."""
    base = choice(by=known, any_case=True)
    why = dict(experiments) if isinstance(experiments, Mapping) else dict.fromkeys(experiments, EXPERIMENT)

    def read(value: Any) -> Any:
        if isinstance(value, str) and value in why:
            raise ValueError(f"must be one of {', '.join(known)}; {value!r} {why[value]}")
        return base.read(value)

    return Value(base.words, read, base.write)


def names() -> Value:
    """A name, or a list of names; written as it is shortest."""
    several = listed(text(), single=True)
    return Value("name, or list of names", several.read, lambda value: value[0] if len(value) == 1 else value)


def device() -> Value:
    """cuda, cuda:0, cpu, mps: the native device."""

    def read(value: Any) -> str:
        found = "cuda" if value == "cuda:0" else value
        if isinstance(found, str) and found.startswith("cuda:"):
            number = found.removeprefix("cuda:")
            raise ValueError(f"must be cuda or cpu; to choose a card set CUDA_VISIBLE_DEVICES={number} and say cuda")
        return choice("cuda", "cpu", "mps").read(found)

    return Value("`cuda`, `cuda:0`, `cpu`, `mps`", read)
