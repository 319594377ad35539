"""Our adapter beside the harness's own class for Hugging Face models, on tiny models and many tokenizers."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from quintet.evaluate.harness.scoring import Limit
from quintet.train.trained import load_writer

pytest.importorskip("lm_eval")
CONTEXT = 24
SHARED = Path(os.environ.get("QUINTET_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "tokenizers/hf"
OF_TEXTS = ("gpt2", "opt", "llama2", "mistral-v3")
MADE = ("bytes", "bytes-begin", "metaspace", "metaspace-begin")
KINDS = (*MADE, *(name for name in OF_TEXTS if (SHARED / name).is_dir()))
CORPUS = ["the cat sat on the mat. Answer: What is 2+3? It is 15, then the naïve dog ran away.\n\nQuestion: which?"] * 9

WORDS = [
    *("the", " cat", "cat", "Wh", "at", "en", " sat", "1", "5", "It is 1", "Answer:", "\n", "\n\n", " ", "  ", "\t"),
    *("naïve", "é", "e\u0301", "日本", "🙂", "\u00a0", "\u200b", "x" * 9, "the cat sat on the mat. " * 3, "_", "▁"),
    *("0", "..", " .", "\r\n", "'s", "A", " A"),
]
SPECIAL = ["<s>", "</s>", "<end>", "<|endoftext|>", "<unk>"]
PIECES = st.sampled_from([*WORDS, *SPECIAL])
TEXT = st.one_of(st.lists(PIECES, max_size=7).map("".join), st.text(max_size=8))
STOPS = st.lists(
    st.one_of(st.sampled_from(WORDS), st.text("abcdefghijklmnopqrstuvwxyz .\n", min_size=1, max_size=2)), max_size=3
)


@dataclass(frozen=True)
class Both:
    """Ours and theirs on one checkpoint."""

    ours: Any
    theirs: Any


def made_tokenizer(kind: str) -> Any:
    """A small tokenizer whose tokens may span words: of bytes, or of characters with a mark for a space."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special: Any = ["<unk>", "<s>", AddedToken("<end>", special=True)]
    found: Any = Tokenizer(models.BPE(unk_token="<unk>" if kind.startswith("metaspace") else None))
    if kind.startswith("metaspace"):
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        found.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted(set("".join(CORPUS)) - {" "})
    else:
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False, initial_alphabet=alphabet),
    )
    if kind.endswith("-begin"):
        found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return found


def save(kind: str, folder: Path) -> None:
    """A checkpoint with random weights and the tokenizer ``kind``."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if kind in MADE:
        begins = {"bos_token": "<s>"} if kind.endswith("-begin") else {}
        tokenizer: Any = PreTrainedTokenizerFast(
            tokenizer_object=made_tokenizer(kind), eos_token="<end>", unk_token="<unk>", **begins
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(SHARED / kind)
    if tokenizer.pad_token is None:  # else theirs adds a token of its own
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    torch.manual_seed(len(kind))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **heads, **ids)).save_pretrained(folder)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    """Both sides on a checkpoint with the tokenizer of a name, made once."""
    from lm_eval.models.huggingface import HFLM

    from quintet.evaluate.harness.model import HarnessModel

    @cache
    def call(kind: str) -> Both:
        folder = tmp_path_factory.mktemp(kind)
        save(kind, folder)
        language_model = load_writer(str(folder))
        language_model = replace(language_model, compute=replace(language_model.compute, precision="fp32"))
        ours = HarnessModel(language_model, Limit(200, CONTEXT))
        with quiet():
            return Both(ours, HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1))

    return call


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's bars and lines."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """The harness's requests, all of one item."""
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=one, idx=number, metadata=("task", 0, 1))
        for number, one in enumerate(arguments)
    ]


def theirs_of(model: Any, method: str, arguments: tuple[Any, ...]) -> Any:
    """The harness's answer to one request; None where it has none."""
    with quiet():
        try:
            return getattr(model, method)(requests(method, [arguments]))[0]
        except (AssertionError, IndexError):
            return None


@given(kind=st.sampled_from(KINDS), context=TEXT, continuations=st.lists(TEXT, min_size=1, max_size=4))
@example(kind="bytes", context="Wh", continuations=["at", "en", ""])
@example(kind="bytes-begin", context=" ", continuations=["<s>", "the"])
def test_log_likelihoods(model_of: Callable[[str], Both], kind: str, context: str, continuations: list[str]) -> None:
    both = model_of(kind)
    pairs = [(context, continuation) for continuation in continuations]
    mine = both.ours.loglikelihood(requests("loglikelihood", pairs))
    for pair, (logprob, greedy) in zip(pairs, mine, strict=True):
        expected = theirs_of(both.theirs, "loglikelihood", pair)
        if expected is None:
            # After white space alone, where the harness has nothing to begin with, ours begins as without a context.
            expected = theirs_of(both.theirs, "loglikelihood", ("", "".join(pair))) if not context.strip() else None
        if expected is None:
            assert math.isnan(logprob), (pair, logprob)
            assert not greedy
        else:
            assert logprob == pytest.approx(expected[0], abs=1e-4 + 1e-6 * abs(expected[0])), pair
            assert greedy == expected[1]


@given(kind=st.sampled_from(KINDS), text=TEXT)
def test_whole_texts(model_of: Callable[[str], Both], kind: str, text: str) -> None:
    both = model_of(kind)
    expected = theirs_of(both.theirs, "loglikelihood_rolling", (text,))
    mine = both.ours.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))[0]
    assert mine == pytest.approx(expected, abs=1e-4 + 1e-6 * abs(expected))


@given(
    kind=st.sampled_from(KINDS),
    contexts=st.lists(TEXT, min_size=1, max_size=3),
    until=STOPS,
    tokens=st.integers(1, CONTEXT - 1),
    name=st.sampled_from(["max_gen_toks", "max_new_tokens", "max_tokens"]),
)
@example(kind=KINDS[-1], contexts=["", "thethethethe"], until=["_"], tokens=22, name="max_gen_toks")
def test_what_is_written(
    model_of: Callable[[str], Both], kind: str, contexts: list[str], until: list[str], tokens: int, name: str
) -> None:
    both = model_of(kind)
    settings = {"until": until, name: tokens, "do_sample": False, "temperature": 0.0}
    mine = both.ours.generate_until(requests("generate_until", [(context, settings) for context in contexts]))
    for context, text in zip(contexts, mine, strict=True):
        if both.theirs.tok_encode(context):
            assert text == theirs_of(both.theirs, "generate_until", (context, json.loads(json.dumps(settings))))


@given(kind=st.sampled_from(KINDS), data=st.data())
def test_where_a_text_stops(model_of: Callable[[str], Both], kind: str, data: st.DataObject) -> None:
    """Any ids, and stop strings that are parts of their text with special tokens written out, or without them."""
    from lm_eval.models.huggingface import stop_sequences_criteria
    from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text

    from quintet.evaluate.harness.texts import GeneratedText

    both = model_of(kind)
    tokenizer, library = both.ours._language_model.tokenizer, both.theirs.tokenizer
    special = st.sampled_from([*tokenizer.special_tokens.values()])
    ids = data.draw(st.lists(st.one_of(st.integers(0, len(library) - 1), special), min_size=1, max_size=8), "ids")
    whole, seen = (library.decode(ids, skip_special_tokens=skip) for skip in (False, True))
    assume("\ufffd" not in whole)  # in how many of these stand for bytes that are no text, the libraries differ
    parts = [text[first:last] for text in (whole, seen) for last in range(len(text) + 1) for first in range(last)]
    parts = parts or ["_"]
    until = data.draw(st.lists(st.sampled_from(parts), max_size=2), "until")

    stops = handle_stop_sequences(list(until), eos=library.decode(library.eos_token_id, skip_special_tokens=False))
    criteria: Any = stop_sequences_criteria(library, stops, 0, 1)
    for one in criteria:
        one.sequence_id_len = len(ids)  # else the last ones, as many as the stop string's own ids and two
    ends = [n for n in range(1, len(ids) + 1) if torch.as_tensor(criteria(torch.tensor([ids[:n]]), None)).all()]
    expected = postprocess_generated_text(both.theirs.tok_decode(ids[: min(ends, default=len(ids))]), stops, None)

    written = GeneratedText(tokenizer, until)
    for number in ids:
        if not written.stopped:
            written.push(number)
    assert written.stopped is bool(ends)
    assert written.finish() == expected


FIELDS = st.lists(TEXT.filter(lambda text: "{" not in text and "}" not in text), min_size=3, max_size=6, unique=True)


@given(
    asked=FIELDS,
    shown=FIELDS,
    shots=st.integers(0, 2),
    split=st.sampled_from([None, "train", "test"]),
    sampler=st.sampled_from(["default", "first_n"]),
    kind=st.sampled_from(["multiple_choice", "generate_until", "loglikelihood"]),
    delimiters=st.tuples(st.sampled_from([" ", "", "\n"]), st.sampled_from(["\n\n", "\n", ""])),
    samples=st.integers(1, 6),
)
def test_requests(
    asked: list[str],
    shown: list[str],
    shots: int,
    split: str | None,
    sampler: str,
    kind: Any,
    delimiters: tuple[str, str],
    samples: int,
) -> None:
    """The requests of some items of a task are those that the harness makes for them when it asks all."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    from quintet.evaluate.harness.tasks import CheckedTask, TaskOptions

    rows = {
        name: datasets.Dataset.from_list([{"q": f"{n} {text}", "label": n % 2} for n, text in enumerate(texts)])
        for name, texts in (("train", shown), ("test", asked))
    }
    choices = {"doc_to_choice": ["yes", "no"]} if kind == "multiple_choice" else {}
    config = {
        "task": "made",
        "output_type": kind,
        "custom_dataset": lambda **_: rows,
        "training_split": "train",
        "test_split": "test",
        "fewshot_split": split,
        "fewshot_config": {"sampler": sampler},
        "doc_to_text": "Q: {{q}}\nA:",
        "doc_to_target": "label" if choices else "{{label}}",
        "target_delimiter": delimiters[0],
        "fewshot_delimiter": delimiters[1],
        "num_fewshot": shots,
        **choices,
        **({"generation_kwargs": {"until": ["\n"]}} if kind == "generate_until" else {}),
    }
    theirs, ours = (
        ConfigurableTask(config=dict(config)),
        CheckedTask(config, TaskOptions(samples, None, None), samples, False),
    )
    found: list[dict[int, list[Any]]] = []
    for task in (theirs, ours):
        task.set_fewshot_seed(seed=1234)
        with quiet():
            task.build_all_requests()
        by_item: dict[int, list[Any]] = {}
        for one in task.instances:
            by_item.setdefault(one.doc_id or 0, []).append((one.request_type, one.idx, one.args))
        found.append(by_item)
    assert list(found[1].values()) == [found[0][number] for number in ours.numbers]
