"""Conversations as text and ids, against `apply_chat_template` of transformers."""

from __future__ import annotations

import json
import os
import pickle
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from quintet.config.tokenizer import HuggingFaceTokenizerConfig
from quintet.errors import UserError
from quintet.templates import _process
from quintet.tokenize import build_tokenizer, load_tokenizer
from quintet.tokenize.base import END_OF_TEXT, Tokenizer
from quintet.tokenize.bounds import TextBounds, checkpoint_bounds, encode_with_special, special_tokens, text_bounds
from quintet.tokenize.chat import ChatFormat, Message, chat_format, fit
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.simple import ByteTokenizer, IdTokenizer
from quintet.tokenize.tokenizer_files import BYTE_OF

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' }}
{% endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
INSTRUCT = """{%- if messages[0]['role'] == 'system' -%}
    {%- set system = '<<SYS>>\\n' ~ messages[0]['content'] ~ '\\n<</SYS>>\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system, rest = '', messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate, and the user begins') }}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}
    {%- else -%}
        {{ ' ' + message['content'] | trim + ' ' + eos_token }}
    {%- endif -%}
{%- endfor -%}
"""
LISTING = """{#- everything that templates do: namespaces, filters, macros, loop controls -#}
{%- set ns = namespace(turns=0, system='be brief') -%}
{%- macro head(role) -%}<|head|>{{ role | upper }}:{%- endmacro -%}
{%- for message in messages if message.role == 'system' -%}
    {%- set ns.system = message.content -%}
    {%- break -%}
{%- endfor -%}
{{ bos_token }}{{ head('system') }} {{ ns.system }}
    {% if tools is defined and tools is not none %}
{{ tools | tojson(indent=2) }}
    {% endif %}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
    {%- set ns.turns = ns.turns + 1 -%}
    {%- if message.role == 'assistant' -%}
{{ head('assistant') }} {% generation %}{{ message.content }}<|end|>{% endgeneration %}

    {%- else -%}
{{ head(message.role) }} {{ {'text': message.content, 'turn': ns.turns} | tojson }}<|end|>
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ head('assistant') }} {% endif -%}
"""
TEMPLATES = {"chatml": CHATML, "instruct": INSTRUCT, "listing": LISTING}
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|end|>"]
PLAIN = """{% for message in messages %}
{{ {'system': '', 'user': '### Instruction:\\n', 'assistant': '### Response:\\n'}[message.role] }}{{ message.content }}

{% endfor %}
{% if add_generation_prompt %}
### Response:
{% endif %}"""

CONTENTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["  padded \n", "a <|im_end|> b", "{{ messages }}", "<b>&'\"", "two  words", "</s>"]
)


def save_source(folder: Path, kind: str = "bytes", **settings: Any) -> Path:
    """A folder with a small tokenizer of ``kind`` and the files beside it, as Hugging Face's hub has them."""
    if kind == "bytes":
        library = tokenizers.Tokenizer(models.BPE(BYTE_OF, []))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
    else:  # as Llama 2: a space before each part, single bytes for unknown characters
        pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghINST[]/"]
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        library = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        library.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    library.add_special_tokens(SPECIAL)
    folder.mkdir(parents=True, exist_ok=True)
    library.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def of(folder: Path) -> HuggingFaceTokenizer:
    config = HuggingFaceTokenizerConfig(kind="huggingface", path=str(folder))
    tokenizer = build_tokenizer(config, list, "", Path())
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return tokenizer


def conversation(*contents: str, system: str | None = None) -> list[Message]:
    """``contents`` said by user and assistant in turn."""
    head: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    turns: list[Message] = [
        {"role": "assistant" if place % 2 else "user", "content": content} for place, content in enumerate(contents)
    ]
    return head + turns


@pytest.fixture(scope="module", params=[(kind, name) for kind in ("bytes", "llama") for name in TEMPLATES])
def pair(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ChatFormat]:
    """The same tokenizer and template in transformers, from the original files, and here, from a saved copy."""
    transformers = pytest.importorskip("transformers")
    kind, name = request.param
    folder = save_source(tmp_path_factory.mktemp(name), kind, chat_template=TEMPLATES[name])
    of(folder).save(folder / "saved")
    ours = load_tokenizer(folder / "saved")
    return transformers.AutoTokenizer.from_pretrained(folder), chat_format(ours)


@settings(max_examples=25)
@given(contents=st.lists(CONTENTS, min_size=1, max_size=4), system=st.none() | CONTENTS, answer_next=st.booleans())
def test_text_and_ids_are_theirs(pair, contents: list[str], system: str | None, answer_next: bool) -> None:
    theirs, ours = pair
    messages = conversation(*contents, system=system)
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next)
    assert ours.render(messages, answer_next=answer_next) == expected
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode(messages) == ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_saved_tokenizer_has_the_template_for_transformers_too(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    of(save_source(tmp_path / "source", chat_template=TEMPLATES[name])).save(tmp_path / "saved")
    source, saved = (transformers.AutoTokenizer.from_pretrained(tmp_path / place) for place in ("source", "saved"))
    messages = conversation("how?", "so", "and then?", system="you help")
    expected = source.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert saved.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected


def test_a_template_of_its_own_file_or_of_several_is_found(tmp_path: Path) -> None:
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    folder = save_source(tmp_path, chat_template=several)
    assert of(folder).chat.template == "default"
    (folder / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert of(folder).chat.template == "file"
    assert pickle.loads(pickle.dumps(of(folder))).chat == of(folder).chat


def test_the_template_is_kept_and_the_fingerprint_is_that_of_the_ids_alone(tmp_path: Path) -> None:
    plain = of(save_source(tmp_path / "plain"))
    with_chat = of(save_source(tmp_path / "chat", chat_template=CHATML))
    assert with_chat.fingerprint == plain.fingerprint
    (tmp_path / "chat/generation_config.json").write_text('{"eos_token_id": [258, 262, 9999]}', encoding="utf-8")
    source = of(tmp_path / "chat")
    source.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert isinstance(loaded, HuggingFaceTokenizer)
    assert loaded.chat == source.chat
    assert loaded.chat.end_ids == (258, 262)  # 9999 is no id of this tokenizer


def test_a_text_alone_still_has_no_special_ids(tmp_path: Path) -> None:
    tokenizer = of(save_source(tmp_path, chat_template=CHATML))
    assert max(tokenizer.encode("<|im_end|></s>")) < 256
    assert tokenizer.encode_template("<|im_end|></s>") == [260, 258]


def test_a_named_token_that_the_model_has_no_row_for_is_not_named(tmp_path: Path) -> None:
    folder = save_source(tmp_path, pad_token="<pad>", chat_template="{{ pad_token }}{{ eos_token }}")
    assert chat_format(of(folder)).render(conversation("x")) == "<pad></s>"  # transformers gives it the next id
    (folder / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 263}', encoding="utf-8")
    assert chat_format(of(folder)).render(conversation("x")) == "</s>"


@pytest.mark.parametrize(("name", "end"), [("chatml", "<|im_end|>"), ("instruct", "</s>"), ("listing", "<|end|>")])
def test_an_answer_ends_with_what_the_template_puts_behind_it(tmp_path: Path, name: str, end: str) -> None:
    tokenizer = of(save_source(tmp_path, chat_template=TEMPLATES[name]))
    found = chat_format(tokenizer)
    bounds = found.bounds(text_bounds(tokenizer))
    assert bounds.stop_ids == {tokenizer.special_tokens["</s>"], tokenizer.special_tokens[end]}
    assert bounds.stops == {"chatml": (), "instruct": (" </s>",), "listing": ()}[name]


ROLES = "{% for m in messages %}{{ m.role }}: \n {{ m.content }}\n{% endfor %}"
ASKING = """{% for m in messages %}{{ m.content }}|{% endfor %}
{% if add_generation_prompt and messages[-1].role != 'user' %}{{ raise_exception('nothing is asked') }}{% endif %}"""
BEFORE_ANSWERS = {  # and what each tokenizer writes before an answer
    "chatml": (CHATML, "", ""),
    "instruct": (INSTRUCT, " ", " "),  # refuses two questions in a row
    "listing": (LISTING, "", ""),
    "plain": (PLAIN, "", ""),
    "roles": (ROLES, "assistant: \n ", "assistant: \n "),
    "asking": (ASKING, "", ""),  # refuses to ask for an answer that follows
    "after a token": (
        "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
        "",
        " ",
    ),  # as Llama's tokenizer does
    "otherwise asked for": (ROLES + "{% if add_generation_prompt %}now:{% endif %}", "", ""),
    "sealed": ("{% for m in messages %}sealed{% endfor %}", "", ""),
}


@pytest.mark.parametrize("case", BEFORE_ANSWERS)
def test_what_template_or_tokenizer_puts_before_an_answer_is_no_part_of_it(tmp_path: Path, case: str) -> None:
    template, *expected = BEFORE_ANSWERS[case]
    found = [ChatFormat(of(save_source(tmp_path / kind, kind)), template).answer_prefix for kind in ("bytes", "llama")]
    assert found == expected


def test_where_texts_begin_and_end_by_the_names_that_a_tokenizer_has(tmp_path: Path) -> None:
    """Check begin, before, stop_ids, stops and preceding of a run, of one with ids around samples, of a checkpoint."""
    named = of(save_source(tmp_path / "named"))
    bos, eos = (named.special_tokens[one] for one in ("<s>", "</s>"))
    expected: list[tuple[Tokenizer, list[tuple[Any, ...]]]] = [
        (ByteTokenizer(), [((), (256,), {256}, (), 1), ((256,), (256,), {256}, (), 0), ((), (256,), {256}, (), 1)]),
        (named, [((), (eos,), {eos}, (), 1), ((bos,), (bos,), {eos}, (), 0), ((), (bos,), {eos}, (), 0)]),
        (IdTokenizer(300), [((), (), set(), (), 0)] * 3),  # its documents do not end
    ]
    for tokenizer, each in expected:
        found = [text_bounds(tokenizer), text_bounds(tokenizer, around_samples=True), checkpoint_bounds(tokenizer)]
        assert found == [TextBounds(begin, before, frozenset(ends), *more) for begin, before, ends, *more in each]
        for one in found:
            assert one.prompt([65, 66]) == [*one.begin, 65, 66]
            assert one.prompt([]) == list(one.before)
            assert (one.starts(one.begin), one.starts(one.before), one.starts([*one.begin, 65])) == (True, True, False)


def test_special_tokens_in_a_text_are_ids_the_longest_first() -> None:
    tokenizer = ByteTokenizer()
    assert encode_with_special(tokenizer, f"a{END_OF_TEXT}é{END_OF_TEXT}") == [97, 256, *"é".encode(), 256]
    assert encode_with_special(tokenizer, "plain") == list(b"plain")
    assert special_tokens(tokenizer) == {END_OF_TEXT: 256}
    assert special_tokens(IdTokenizer(300)) == {}


def test_a_special_token_that_begins_with_another_ends_an_answer_by_itself(tmp_path: Path) -> None:
    folder = save_source(tmp_path, chat_template="{% for m in messages %}{{ m.content }}<|end|>+{% endfor %}")
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.add_special_tokens(["<|end|>+"])
    library.save(str(folder / "tokenizer.json"))
    tokenizer = of(folder)
    bounds = chat_format(tokenizer).bounds(text_bounds(tokenizer))
    assert bounds.stop_ids == {tokenizer.special_tokens[one] for one in ("</s>", "<|end|>+")}
    assert bounds.stops == ()


def test_ends_that_the_files_name_are_taken_as_well(tmp_path: Path) -> None:
    folder = save_source(tmp_path, chat_template=CHATML)
    (folder / "generation_config.json").write_text('{"eos_token_id": 262}', encoding="utf-8")
    tokenizer = of(folder)
    assert chat_format(tokenizer).bounds(text_bounds(tokenizer)).stop_ids == {258, 260, 262}


def test_a_template_of_plain_text_ends_an_answer_with_text(tmp_path: Path) -> None:
    file = tmp_path / "plain.jinja"
    file.write_text(PLAIN, encoding="utf-8")
    found = chat_format(ByteTokenizer(), file)
    bounds = found.bounds(text_bounds(ByteTokenizer()))
    # Whole, with its white space: an answer may speak of "### Instruction:".
    assert (bounds.stop_ids, bounds.stops) == ({256}, ("\n\n### Instruction:\n",))
    rendered = found.render(conversation("Add 2 and 3.", "5", "Add 1.", system="You add."))
    expected = (
        "You add.\n\n### Instruction:\nAdd 2 and 3.\n\n### Response:\n5\n\n### Instruction:\nAdd 1.\n\n### Response:\n"
    )
    assert rendered == expected
    assert found.encode(conversation("é")) == list(found.render(conversation("é")).encode())


def test_the_end_of_a_document_can_be_written_with_any_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", encoding="utf-8")
    found = chat_format(ByteTokenizer(), file)
    assert found.encode(conversation("a", "b")) == [97, 256, 98, 256]
    bounds = found.bounds(text_bounds(ByteTokenizer()))
    assert (bounds.stop_ids, bounds.stops) == ({256}, ())


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7).filter(lambda one: len(one) % 2 == 1),
    most=st.integers(5, 200),
    system=st.booleans(),
)
def test_the_oldest_turns_are_left_out_and_no_more_than_needed(lengths: list[int], most: int, system: bool) -> None:
    chat = ChatFormat(ByteTokenizer(), "{% for m in messages %}{{ m.role[0] }}{{ m.content }}|{% endfor %}")
    messages = conversation(*("x" * length for length in lengths), system="sys" if system else None)
    head = messages[: int(system)]
    tails = [head + messages[start:] for start in range(int(system), len(messages), 2)]
    fitting = [tail for tail in tails if sum(len(message["content"]) + 2 for message in tail) <= most]
    if not fitting:
        with pytest.raises(UserError, match="shorten"):
            fit(chat, messages, most)
        return
    ids, kept = fit(chat, messages, most)
    assert kept == fitting[0]
    assert bytes(ids).decode() == "".join(f"{m['role'][0]}{m['content']}|" for m in kept)


def test_a_question_that_had_no_answer_is_left_out_alone() -> None:
    chat = ChatFormat(ByteTokenizer(), "{% for m in messages %}{{ m.content }}{% endfor %}")
    messages: list[Message] = [{"role": "user", "content": content} for content in ("first", "second", "third")]
    assert fit(chat, messages, 11)[1] == messages[1:]
    assert fit(chat, messages, 10)[1] == messages[2:]


def test_what_a_template_refuses_or_gets_wrong_is_said() -> None:
    two: list[Message] = [{"role": "user", "content": "a"}] * 2
    for template, message in [
        ("{{ raise_exception('roles must alternate') }}", "chat template: roles must alternate;"),
        ("{% for %}", "line 1"),
        ("{{ messages.x.y }}", "no attribute"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ]:
        with pytest.raises(UserError, match=message):
            ChatFormat(ByteTokenizer(), template).render(two)


def test_a_template_that_asks_for_the_day_is_told_the_given_one_or_this_one(tmp_path: Path) -> None:
    file = tmp_path / "dated.jinja"
    file.write_text("{{ strftime_now('%Y-%m-%d') }}")
    found = chat_format(ByteTokenizer(), file, datetime(2024, 7, 26))
    assert found.render(conversation("x")) == "2024-07-26"
    before, text, after = date.today(), chat_format(ByteTokenizer(), file).render(conversation("x")), date.today()
    assert text in (before.isoformat(), after.isoformat())


def test_without_a_template_the_option_is_named(tmp_path: Path) -> None:
    for tokenizer in (ByteTokenizer(), of(save_source(tmp_path / "source"))):
        with pytest.raises(UserError, match="--template FILE"):
            chat_format(tokenizer)
    with pytest.raises(UserError, match="does not exist"):
        chat_format(ByteTokenizer(), tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(UserError, match="UTF-8"):
        chat_format(ByteTokenizer(), tmp_path / "latin")


@pytest.mark.parametrize("name", ["mistral-v3", "llama2", "dolma2", "gpt2"])
def test_real_tokenizers_give_their_ids(shared: Path, shared_tokenizer: Any, tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    file = tmp_path / "chat.jinja"
    file.write_text(INSTRUCT if name in ("mistral-v3", "llama2") else CHATML.replace("<|im_end|>", "<|endoftext|>"))
    theirs = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers/hf" / name)
    ours = chat_format(shared_tokenizer(name), file)
    messages = conversation("Zwölf  Boxkämpfer?", "  Yes.\n", "東京 😀", system="You help.")
    settings = {"chat_template": file.read_text(), "add_generation_prompt": True, "return_dict": False}
    expected = theirs.apply_chat_template(messages, **settings)
    assert ours.encode(messages) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 0.5 s"),
        ("{{ 9 ** (9 ** 9) }}", "takes more than 0.5 s"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}", "writes more than 10,000 ch"),
        ("{{ 'x' * 10 ** 11 }}", "takes more than 2 GB of memory"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}", "recursion"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "recursion"),
    ],
)
def test_a_template_that_does_not_end_is_one_line_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch, template: str, message: str
) -> None:
    monkeypatch.setattr("quintet.templates._MOST_SECONDS", 0.5)
    monkeypatch.setattr("quintet.templates._MOST_CHARACTERS", 10_000)
    with pytest.raises(UserError, match=f"^chat template: .*{message}") as raised:
        ChatFormat(ByteTokenizer(), template).render(conversation("x"))
    assert len(str(raised.value).splitlines()) == 1
    assert ChatFormat(ByteTokenizer(), "{{ messages[0].content }}").render(conversation("x")) == "x"


def test_one_process_renders_all_and_a_forked_process_has_its_own() -> None:
    sound = ChatFormat(ByteTokenizer(), "{{ messages[0].content }}")
    sound.render(conversation("x"))
    ours = _process(os.getpid())._child
    assert ours is not None
    for text in ("y", "\ud83d", "é𝄞\u2028\n", '"\\'):
        assert sound.render(conversation(text)) == text
    assert _process(os.getpid())._child is ours
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        with os.fdopen(writer, "w") as pipe:
            text = sound.render(conversation("z"))
            pipe.write(f"{text} {_process(os.getpid())._child is not ours}")
        _process(os.getpid())._end()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "z True"
    os.waitpid(child, 0)
    assert sound.render(conversation("x")) == "x"
