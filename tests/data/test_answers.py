"""Prompts and answers are encoded as one text, wherever they are read; characters decide which tokens have a loss."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quintet.config.documents import AnswerFields, ConditionalField
from quintet.config.sources import TextSource
from quintet.config.tokenizer import BPETokenizerConfig, CharTokenizerConfig, TiktokenTokenizerConfig
from quintet.data.shards import _encode
from quintet.data.sources.base import TextParts, WorkUnit
from quintet.data.sources.rows import document_maker
from quintet.data.sources.templates import Conversations
from quintet.data.sources.text import TextReader
from quintet.evaluate.continuation import prompt_ids
from quintet.evaluate.harness.texts import Encoder
from quintet.tokenize import Tokenizer, build_tokenizer
from quintet.tokenize.base import PART
from quintet.tokenize.bounds import text_bounds
from quintet.tokenize.chat import ChatFormat, Message
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.simple import ByteTokenizer

PUBLISHED: list[Any] = ["llama2", "mistral-v3", "t5-base", "gpt2"]
PUBLISHED += [
    pytest.param(name, marks=pytest.mark.slow) for name in ("mistral-v1", "bert-base-uncased", "opt", "dolma2")
]
MADE = ["byte", "char", "bpe", "simple", "cl100k_base"]
CORPUS = ["What is 3 plus 4? It is 7.\n\n", "Zwölf Boxkämpfer 😀 – 東京 é\t#a# </s>[INST] q: B=>", "a  b  2026 don't"]
WORDS = ["What", " is", " ", "  ", "\n", "\n\n", "7", "3é", "😀", "東京", "don", "'t", "a", "B", ".", " #a#", "</s>"]
WORDS += ["[INST]", "\t"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)
TEMPLATES = {
    "zephyr": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "llama2": "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
    "plain": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}
UNIT = WorkUnit(TextReader(TextSource(kind="text", path="a.txt")), None, "a.txt", 0)
many = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def tokenizer(request, built: dict[str, Any], tmp_path_factory, monkeypatch) -> Tokenizer:
    name = request.param
    if name not in built:
        cache, texts = tmp_path_factory.mktemp("cache"), lambda: ["".join(WORDS), *CORPUS]
        match name:
            case "byte":
                built[name] = ByteTokenizer()
            case "char":
                built[name] = build_tokenizer(CharTokenizerConfig(kind="char"), texts, "corpus", cache)
            case "bpe" | "simple":
                config = BPETokenizerConfig(vocab_size=300, simplify=name == "simple")
                built[name] = build_tokenizer(config, texts, name, cache)
            case "cl100k_base":
                monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache / "tiktoken"))
                shutil.copytree(request.getfixturevalue("shared") / "tokenizers/tiktoken", cache / "tiktoken")
                built[name] = build_tokenizer(TiktokenTokenizerConfig(kind="tiktoken", name=name), texts, "", cache)
            case _:
                built[name] = request.getfixturevalue("shared_tokenizer")(name)
    return built[name]


def stored(tokenizer: Tokenizer, document: Any) -> tuple[list[int], list[bool]]:
    """Ids and mask of ``document`` as a store gets them, before its end."""
    [found] = _encode(tokenizer, [document], UNIT)
    assert found.loss_mask is not None
    return found.ids.tolist(), found.loss_mask.tolist()


def by_characters(tokenizer: Tokenizer, text: str, answers: list[range]) -> list[bool]:
    """Return which ids of ``text`` have a character in ``answers``, by how much of the text the ids write."""
    wanted = set().union(*answers)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        found = tokenizer._library.encode(text, add_special_tokens=False)
        return [bool(wanted & set(range(start, stop))) for start, stop in found.offsets]
    owners = [place for place, character in enumerate(text) for _ in character.encode()]
    loss_mask, at = [], 0
    for token in tokenizer.encode(text):
        size = len(tokenizer.pieces.of(token))
        loss_mask.append(bool(wanted & set(owners[at : at + size])))
        at += size
    return loss_mask


@pytest.mark.parametrize("tokenizer", [*PUBLISHED, *MADE], indirect=True)
@many
@given(prompt=TEXTS, answer=TEXTS, between=st.sampled_from(["", " ", "\n", ": "]))
@example(prompt="What is 3 plus 4?", answer="It is 7.", between=" ")
@example(prompt="q ", answer="B", between="")  # a token may span the join
@example(prompt="😀", answer="東京", between="")
@example(prompt="q", answer=" \n", between="")
def test_an_answer_is_read_as_the_model_writes_it(tokenizer: Tokenizer, prompt: str, answer: str, between: str) -> None:
    make = document_maker(AnswerFields(kind="answer", between=between), tokenizer)
    document = make({"prompt": prompt, "answer": answer}, lambda: "here")
    assert isinstance(document, TextParts)
    ids, loss_mask = stored(tokenizer, document)
    whole, start = prompt + between + answer, len(prompt + between)
    assert ids == tokenizer.encode(whole)
    if ids:  # the model may read a begin token first
        assert prompt_ids(tokenizer, text_bounds(tokenizer), whole)[-len(ids) :] == ids
    special = getattr(tokenizer, "special_tokens", {})
    if ids and not any(token in whole for token in special):  # in benchmarks these are ids, as in the harness's class
        assert Encoder(tokenizer, 10_000, text_bounds(tokenizer)).encode([whole])[whole][-len(ids) :] == ids
    assert loss_mask == by_characters(tokenizer, whole, [range(start, len(whole))] if answer.strip() else [])
    conditional = document_maker(ConditionalField(kind="conditional", separator="=>", prefix="B"), tokenizer)
    made = conditional({"text": f"{prompt}=>{answer}"}, lambda: "here")
    assert stored(tokenizer, made)[0] == tokenizer.encode(f"B{prompt}=>{answer}")


@pytest.mark.parametrize("tokenizer", [*PUBLISHED, *MADE], indirect=True)
@many
@given(text=TEXTS)
def test_spans_cover_the_text_in_its_order(tokenizer: Tokenizer, text: str) -> None:
    [spans] = tokenizer.encode_spans([text])
    assert spans.ids.tolist() == tokenizer.encode(text)
    assert (spans.starts <= spans.stops).all()
    assert (np.diff(spans.starts) >= 0).all()
    assert (np.diff(spans.stops) >= 0).all()
    assert not spans.ids.size or (spans.starts[0] >= 0 and spans.stops[-1] <= len(text))
    if tokenizer.lossless:
        assert {place for one in zip(spans.starts, spans.stops, strict=True) for place in range(*one)} == set(
            range(len(text))
        )


@pytest.mark.parametrize("tokenizer", ["gpt2", "bpe", "cl100k_base", "byte", "char"], indirect=True)
def test_long_texts_have_the_spans_of_short_ones(tokenizer: Tokenizer) -> None:
    text = "What is 3é 東京 don't. " * (3 * PART // 20)
    [spans] = tokenizer.encode_spans([text])
    assert spans.ids.tolist() == tokenizer.encode(text)
    for place in range(0, spans.ids.size, 9973):
        start, stop = int(spans.starts[place]), int(spans.stops[place])
        written = tokenizer.pieces.of(int(spans.ids[place])).decode("utf-8", errors="ignore")
        assert written in text[start:stop]


@pytest.fixture
def theirs(shared: Path, built: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    def load(name: str) -> Any:
        if (key := f"transformers {name}") not in built:
            built[key] = AutoTokenizer.from_pretrained(shared / "tokenizers/hf" / name)
        return built[key]

    return load


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(TEXTS, min_size=2, max_size=4))
@example(contents=["What is 3 plus 4?", "It is 7.", "And 4 plus 4?", "8, of course"])
@example(contents=["What is 3 plus 4?", "", "And 4 plus 4?", " "])
def test_a_chat_has_the_ids_of_apply_chat_template(
    theirs: Any, shared_tokenizer: Any, tmp_path: Path, name: str, template: str, contents: list[str]
) -> None:
    ours, reference = shared_tokenizer(name), theirs(name)
    text = TEMPLATES[template].replace("eos_token", repr(ours.chat.tokens["eos_token"]))
    (tmp_path / "t.jinja").write_text(text)
    said: list[Message] = [
        {"role": ("user", "assistant")[number % 2], "content": content}  # type: ignore[typeddict-item]
        for number, content in enumerate(contents)
    ]
    document = Conversations(str(tmp_path / "t.jinja"), ours).document(said)
    ids, loss_mask = stored(ours, document)
    rendered = reference.apply_chat_template(said, chat_template=text, tokenize=False)
    assert document.whole == rendered
    expected = reference(rendered, add_special_tokens=False, return_offsets_mapping=True)
    assert ids == expected["input_ids"]
    if name not in ("opt", "dolma2", "gpt2"):  # whose own call puts a token in front
        assert ids == reference.apply_chat_template(said, chat_template=text, tokenize=True, return_dict=False)
    answers, at = [], 0
    for part, is_learnt in zip(document.texts, document.loss_mask, strict=True):
        answers += [range(at, at + len(part))] if is_learnt else []
        at += len(part)
    wanted = set().union(*answers)
    assert loss_mask == [
        bool(wanted & set(range(*place)))
        for place in ours._template_library.encode(rendered, add_special_tokens=False).offsets
    ]
    # The prompt of an answer is how the conversation continues.
    chat = ChatFormat(ours, text)
    assert chat.encode(said) == ours.encode_template(chat.render(said))
