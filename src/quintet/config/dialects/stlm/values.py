"""STLM's names of datasets, tokenizers, benchmarks and parts of a model, and their native meanings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from quintet.config.dialects.types import Listed, one_of
from quintet.config.documents import TemplateFields
from quintet.config.names import local_path
from quintet.config.section import Value
from quintet.config.sources import HuggingFaceSource, JsonlSource, ParquetSource, SourceConfig, TextSource
from quintet.errors import NotHere, did_you_mean, nearest

EXPERIMENT = "belongs to an experiment of STLM's code, which its document does not describe and each revision changes"
OLDEST = (
    "belongs to the models of STLM's code before May 2024, whose norms, positions, dropouts and tied weights each "
    "revision changes; use the document's keys: core_model_type: generic, attn, ffn, positional_encoding_type"
)


def meanings(words: str) -> dict[str, str]:
    """Return the meaning of each word of ``words``, which has "word=meaning", or a word that means itself."""
    return {word: meaning or word for word, _, meaning in (entry.partition("=") for entry in words.split())}


def words(accepted: str, refused: Mapping[str, str] | None = None) -> Value:
    """Build the type of one of the words in ``accepted``, which is as in `meanings`, in any case.

    ``refused`` has reasons for refusing other words.
    """
    reasons = dict.fromkeys(_EXPERIMENTS.split(), EXPERIMENT) | dict(refused or {})
    return one_of(by=meanings(accepted), any_case=True, why=reasons)


_EXPERIMENTS = (
    "ffn_lora_sharing_moe conv next_thought_baseline pass_through "
    "passthrough cascade hierarchical hierarchical_encoder byte_patch latent_2_seq classification attention "
    "byte_autoencoder_shell moe_ffn grin_moe_ffn block_shuffle_ffn fast_ffn kan_ffn alibi_attention "
    "linformer_attention performer_attention sparse_attention differentiable_attention "
    "autoencoder conversational prm800k text_classification text_classification_preprocessor prm800k_preprocessor "
    "cascade_trainer"
)

# The model
_OLDEST = "baseline modern_baseline poolformer profiler seq2seq_baseline sharedfnn sharedfnnlora thinking"
Core = Annotated[
    str,
    words(
        "generic hf_core generic_ffn_sharing generic_cproj_shared generic_ffn_qproj_sharing ffn_lora_sharing "
        "weight_sharing",
        dict.fromkeys(_OLDEST.split(), OLDEST),
    ),
]
Shell = Annotated[str, words("standard byte_shell byte_enc_shell")]
Embedding = Annotated[str, words("generic hf_embedder byte_level=bytes byte_level_embedder=bytes")]
Head = Annotated[str, words("generic hf_head byte_level=bytes byte_level_decoder=bytes lm_head=generic")]
Attention = Annotated[
    str, words("causal bidirectional generic standard=generic generic_attention=generic rope_attention=rope")
]
FeedForward = Annotated[str, words("generic=plain silu_ffn=gated swiglu=gated")]
Activation = Annotated[str, words("gelu relu leakyrelu=leaky_relu tanh sigmoid silu none")]
Norm = Annotated[str, words("rms_norm=rms rmsnorm=rms layer_norm=layer layernorm=layer none")]
Position = Annotated[str, words("learned sincos=sinusoidal rope none")]
Initialization = Annotated[str, words("xavier kaiming none")]
Gain = Annotated[str, words("gelu relu leaky_relu tanh sigmoid silu linear leakyrelu=leaky_relu none=linear")]

# The tokenizer
TIKTOKEN = ("gpt2", "o200k_base", "cl100k_base", "p50k_base")
HUB_TOKENIZERS = {
    "llama_32k": "chavinlo/alpaca-native",
    "opt_50k": "facebook/opt-1.3b",
    "mistral_32k": "mistralai/Mistral-7B-v0.1",
    "llama_3.2_1B": "meta-llama/Llama-3.2-1B",
}
_TOKENIZERS = (
    "GPT-2=gpt2 p50k=p50k_base cl100k=cl100k_base llama_30k=llama_32k opt=opt_50k bpe bpe-retrain hf hf_tokenizer=hf"
)
_PRUNED = {"bpe-subsampled": "keeps the first ids of another tokenizer, which the document does not describe; set bpe"}
Tokenizer = Annotated[str, words(f"{' '.join((*TIKTOKEN, *HUB_TOKENIZERS))} {_TOKENIZERS}", _PRUNED)]

# Data, training and evaluation
Dataloader = Annotated[
    str,
    words(
        "standard random=standard next_token_mlm mlm byte_pooling byte_pooling_dataloader=byte_pooling "
        "dual_byte_pooling=dual"
    ),
]
Datasampling = Annotated[str, words("standard")]
Preprocessor = Annotated[str, words("text_preprocessor")]
TrainerType = Annotated[str, words("base_trainer mock_trainer byte_trainer=base_trainer")]
Loss = Annotated[str, words("cross_entropy=next_token next_token_mlm=masked masked_cross_entropy=masked_bytes")]
_OPTIMIZERS = (
    "AdamW nanoGPTadamW Adadelta Adafactor Adagrad Adam Adamax ASGD Muon NAdam RAdam RMSprop Rprop SGD AdaBelief "
    "ada_belief=AdaBelief DiffGrad Lion NovoGrad Ranger SGDP Shampoo SOAP Yogi"
)
_NO_OPTIMIZERS = {
    "adam_mini": "shares averages by the names of the matrices, and STLM's code knows only those of embeddings",
    "lbfgs": "computes the loss several times in a step",
    "sparseadam": "needs sparse gradients, which no model of Quintet produces",
    "lookahead": "wraps another optimizer, which no key names",
    "ranger21": "has its own learning-rate schedule, in addition to the one that the file names",
}
Optimizers = Annotated[str, words(_OPTIMIZERS, _NO_OPTIMIZERS)]
OPTIMIZER_DEFAULTS = {
    "AdamW": (1e-3, 0.01),
    "Adadelta": (1.0, 0.0),
    "Adamax": (2e-3, 0.0),
    "NAdam": (2e-3, 0.0),
    "Lion": (1e-4, 0.0),
    "SOAP": (3e-3, 0.01),
    **dict.fromkeys(("Adafactor", "Adagrad", "ASGD", "RMSprop", "Rprop", "Yogi"), (0.01, 0.0)),
}
"""The default learning rate and weight decay of an optimizer class, if they are not 1e-3 and 0."""
Scheduler = Annotated[
    str,
    words(
        "cosine constant StepLR MultiStepLR ConstantLR LinearLR ExponentialLR PolynomialLR CosineAnnealingLR "
        "CosineAnnealingWarmRestarts CyclicLR OneCycleLR"
    ),
]
TASKS = meanings(
    "winogrande hellaswag arc_easy mmlu blimp truthful_qa piqa race_middle race_high boolq openbook_qa_closed "
    "openbook_qa_open copa commonsense_qa stlm_eval_arc_easy stlm_eval_hellaswag stlm_eval_truthful_qa "
    "stlm_eval_winogrande ewok glue winograd=winogrande arc=arc_easy"
)
"""Benchmarks by their names in the document and in the files before it."""
_REGISTERED = meanings(
    "ArcEasy=arc_easy Blimp=blimp Hellaswag=hellaswag MMLU=mmlu Winogrande=winogrande TruthfulQA-M2=truthfulqa_mc2 "
    "Truthful-M2=truthfulqa_mc2 PIQA=piqa BoolQ=boolq RACEMiddle=race_middle RACEHigh=race_high Ewok=ewok "
    "OpenbookQAOpen=openbook_qa_open OpenbookQAClosed=openbook_qa_closed Copa=copa CommonsenseQA=commonsense_qa "
    "MATH=hendrycks_math GSM8K=gsm8k"
)
TEXT_MODELING, TEXT_GENERATION, TEACHERS = "text modelling", "text generation", "teachers"
_TOPICS = (
    "full Code Conversational Ethics Literature Science Science-Easy Science-Medium Science-Hard"  # of text modelling
)
BENCHMARKS = {
    **TASKS,
    **_REGISTERED,
    # A subset has 100 items.
    **{f"{name}-Subset": f"{task}:100" for name, task in _REGISTERED.items()},
    **meanings("ArcEasySubset=arc_easy:100 MATH-small=hendrycks_math:100 ArcEasyLinearSubset=stlm_eval_arc_easy"),
    **meanings("ArcEasy-STLMSubset=stlm_eval_arc_easy Hellaswag-STLMSubset=stlm_eval_hellaswag"),
    **meanings("Winogrande-STLMSubset=stlm_eval_winogrande TruthfulQA-M2-STLMSubset=stlm_eval_truthful_qa"),
    **{f"STLM-Text-Modeling ({topic})": TEXT_MODELING for topic in _TOPICS.split()},
    "Text-Generation (full)": TEXT_GENERATION,
    "Teacher-Text-Modeling (full)": TEACHERS,
}
"""Benchmarks by every name that files use; a number counts the items. The last three entries are no tasks."""
Benchmarks = Annotated[tuple[Annotated[str, one_of(by=BENCHMARKS, any_case=True)], ...], Listed]
Evaluator = Annotated[str, one_of("mcq", "prog", "glue", "ft_qa")]

# Datasets
_ASKED = "Question: {{ prompt }}\nAnswer: {{ response }}"
_HERMES = "Question: {{ conversations[0].value }}\nAnswers: {{ conversations[1].value }}"
_CODE = "Instruction: {{ instruction }}\nOutput: {{ output }}"
_ULTRACHAT = "{% for turn in data %}{{ loop.cycle('Question', 'Answer') }}: {{ turn }}{% endfor %}"
_ORCA = "{{ textbook }}\n Question: {{ question }}\nAnswer: {{ response }}"
_NATURAL = "Task: Definition: {{ definition }}\nQuestion: {{ inputs }}\nAnswer: {{ targets }}"
_RATIONALE = "Question: {{ source }}\nAnswer: {{ rationale }} - {{ target }}"

# Name: dataset on the hub, its configuration, and the column with the text, or a template that joins several columns.
REGISTRY: dict[str, tuple[str, str | None, str]] = {
    "simple_en_wiki": ("wikimedia/wikipedia", "20231101.simple", "text"),
    "en_wiki": ("wikimedia/wikipedia", "20231101.en", "text"),
    "babylm_100m": ("Sree1994/babylm_100M", None, "text"),
    "tinystories": ("roneneldan/TinyStories", None, "text"),
    "openwebtext": ("Skylion007/openwebtext", None, "text"),
    "pints": ("pints-ai/Expository-Prose-V1", None, "text"),
    "tiny_textbooks": ("nampdn-ai/tiny-textbooks", None, "text"),
    "tiny_webtext": ("nampdn-ai/tiny-webtext", None, "text"),
    "tiny_bridgedict": ("nampdn-ai/tiny-bridgedict", None, "text"),
    "mini_fineweb": ("nampdn-ai/mini-fineweb", None, "text"),
    "tiny_lessons": ("nampdn-ai/tiny-lessons", None, "textbook"),
    "github-code": ("codeparrot/github-code", None, "code"),
    "textbooks_are_all_you_need_lite": ("SciPhi/textbooks-are-all-you-need-lite", None, "completion"),
    "openphi_textbooks": ("open-phi/textbooks", None, "markdown"),
    "openphi_programming_books": ("open-phi/programming_books_llama", None, "markdown"),
    "fineweb_edu_10B": ("HuggingFaceFW/fineweb-edu", "sample-10BT", "text"),
    "fineweb_edu_100B": ("HuggingFaceFW/fineweb-edu", "sample-100BT", "text"),
    "openhermes-2.5": ("teknium/OpenHermes-2.5", None, _HERMES),
    "competition_math": ("hendrycks/competition_math", None, "Problem: {{ problem }}\nSolution: {{ solution }}"),
    "super_natural_instructions": ("andersonbcdefg/supernatural-instructions-2m", None, _ASKED),
    "tiny_codes": ("nampdn-ai/tiny-codes", None, _ASKED),
    "tiny_orca_textbooks": ("nampdn-ai/tiny-orca-textbooks", None, _ORCA),
    "mini_cot": ("nampdn-ai/mini-CoT-Collection", None, _RATIONALE),
    "mini_ultrachat": ("nampdn-ai/mini-ultrachat", None, _ULTRACHAT),
    "natural_instructions": ("Muennighoff/natural-instructions", None, _NATURAL),
    "MATH": ("lighteval/MATH", None, "{{ problem }}\n{{ solution }}"),
    "prm800k": ("LeonGuertler/PRM800K_train2_updated", None, "text"),
    "python-code-500k": ("jtatman/python-code-dataset-500k", None, _CODE),
}
_TINY = "tiny_textbooks tiny_codes tiny_orca_textbooks tiny_lessons mini_cot mini_ultrachat openphi_textbooks"
MIXES = {
    "stlm": ("simple_en_wiki", "python-code-500k", "openhermes-2.5", "tinystories"),
    "tiny_pile": tuple(f"{_TINY} textbooks_are_all_you_need_lite openphi_programming_books simple_en_wiki".split()),
}
"""Several datasets under one name: all documents of each, without weights."""
DEBUG_DOCUMENTS = 2048
UNREADABLE = {"the_pile": "has a name that the hub does not know; give the path of a copy"}

_ENDINGS = {".jsonl": "jsonl", ".parquet": "parquet", **dict.fromkeys((".txt", ".text", ".md", ".py"), "text")}


def dataset_sources(name: str) -> list[dict[str, Any]]:
    """Return the native sources of the dataset ``name``: a name of STLM's, a local path, or OWNER/NAME on the hub.

    Raises ValueError if it cannot be read, and NotHere if it is none of these.
    """
    if name in MIXES:
        return [_registered(part) for part in MIXES[name]]
    if name == "debug":
        first = {"label": name, "split": f"train[:{DEBUG_DOCUMENTS}]"}
        return [_registered("simple_en_wiki") | first]
    if name in REGISTRY:
        return [_registered(name)]
    if name in UNREADABLE:
        raise ValueError(f"{name!r} {UNREADABLE[name]}")
    path = local_path(name)
    if name.startswith((".", "/", "~")) or "://" in name or _ending(name) or path.exists():
        return [{"kind": _kind(path), "path": name}]
    if name.count("/") == 1:
        return [{"kind": "huggingface", "path": name}]
    like = nearest(name, [*REGISTRY, *MIXES, *UNREADABLE])
    problem = f"{name!r} is none of STLM's datasets, and there is no such file"
    if like:
        raise ValueError(f"{problem}{did_you_mean(like)} Else give a path (./{name}) or OWNER/NAME")
    raise NotHere(f"{problem}; give a path (./{name}) or OWNER/NAME")


def _registered(name: str) -> dict[str, Any]:
    path, configuration, text = REGISTRY[name]
    source: dict[str, Any] = {"kind": "huggingface", "path": path, "label": name}
    if configuration:
        source["name"] = configuration
    if text != "text":
        source["document"] = {"kind": "template", "text": text} if "{" in text else {"field": text}
    return source


def names_of(sources: Sequence[SourceConfig]) -> list[str]:
    """Return the names that `dataset_sources` reads as ``sources``; a source that no name stands for is omitted."""
    names = [name for name in map(_name_of, sources) if name is not None]
    mix = next((mix for mix, parts in MIXES.items() if names == list(parts)), None)
    return names if mix is None else [mix]


def _name_of(source: SourceConfig) -> str | None:
    if isinstance(source, HuggingFaceSource):
        if source.split != "train":
            return source.label if source.label == "debug" else None
        document = source.document
        text = document.text if isinstance(document, TemplateFields) else getattr(document, "field", None)
        for name, known in REGISTRY.items():
            if known == (source.path, source.name, text):
                return name
        return source.path if source.name is None else None
    if not isinstance(source, TextSource | JsonlSource | ParquetSource) or not isinstance(source.path, str):
        return None
    known = source.path in REGISTRY or source.path in UNREADABLE or source.path in MIXES
    return f"./{source.path}" if known or (_ending(source.path) is None and "/" not in source.path) else source.path


def _kind(path: Path) -> str:
    """Return the kind of source of a file, by its name, or of a folder, by its files."""
    if not path.is_dir():
        return _ending(path.name) or "text"
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return "huggingface"
    for kind in ("jsonl", "parquet"):
        if next(path.glob(f"*.{kind}*"), None) is not None:
            return kind
    return "text"


def _ending(name: str) -> str | None:
    plain = name.removesuffix(".gz").removesuffix(".zst")
    return next((kind for ending, kind in _ENDINGS.items() if plain.endswith(ending)), None)
