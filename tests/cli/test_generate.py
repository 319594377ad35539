"""`quintet generate` and `quintet chat` as their user meets them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tests.helpers import tiny_values, train_in, write_corpus

from quintet.train.trained import load_trained, load_writer

LONGER = {"steps": 30, "batch_size": 8, "precision": "fp32", "device": "cpu"}
TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] }}: {{ message.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that all tests read and none changes."""
    place = tmp_path_factory.mktemp("trained")
    write_corpus(place / "corpus")
    return train_in(place, **tiny_values({"context_length": 256}, tokenizer={"kind": "byte"}, train=LONGER))


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of the run, seen from a working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return str(folder)


def test_prompts_side_by_side_write_what_each_writes_alone(run: str, command) -> None:
    Path("prompts.txt").write_text("the cat\n\na dog saw\n")
    Path("prompts.jsonl").write_text('{"prompt": "the cat"}\n\n{"prompt": ""}\n{"prompt": "a dog saw", "id": 3}\n')
    settings = ("--max-tokens", "9", "--temperature", "0")
    found = [
        [json.loads(line) for line in command("generate", run, "--json", *settings, *how)[1].splitlines()]
        for how in (
            ("--prompts-file", "prompts.txt"),
            ("--prompts-file", "prompts.jsonl", "--batch-size", "2"),
            ("--prompt", "the cat", "--prompt", "", "--prompt", "a dog saw"),
        )
    ]
    assert found[0] == found[1] == found[2]
    assert [row["prompt"] for row in found[0]] == ["the cat", "", "a dog saw"]
    for row in found[0]:
        assert command("generate", run, "--prompt", row["prompt"], *settings)[1] == f"{row['prompt']}{row['text']}\n"
        assert row["tokens"] <= 9
        assert row["ended"] in ("end", "length")


def test_a_text_ends_before_a_stop_string(train, command) -> None:
    run = train(model={}, tokenizer={"kind": "char"}, train=LONGER)
    whole = command("generate", run, "--prompt", "the", "--seed", "3", "--max-tokens", "20")[1].rstrip("\n")
    stop = whole[8:10]
    before = whole[3 : whole.index(stop, 3)]
    code, out, _ = command("generate", run, "--prompt", "the", "--seed", "3", "--stop", stop, "--json")
    assert code == 0
    assert json.loads(out) == {"prompt": "the", "text": before, "tokens": len(before) + 2, "ended": "stop"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stop", ""), "stop: an empty text"),
        (("--prompts-file", "none.txt"), "--prompts-file: none.txt does not exist"),
        (("--prompts-file", "empty.txt"), "--prompts-file: empty.txt is empty"),
        (("--prompts-file", "bad.jsonl"), "bad.jsonl:2: has no text under"),
        (("--prompts-file", "half.jsonl"), "half.jsonl:2: character 0 is U+D83D, a surrogate"),
        (("--prompt", "a", "--prompts-file", "bad.jsonl"), "give prompts in the file or with --prompt, not both"),
        (("--beams", "2", "--static-cache"), "a beam search does not sample"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: str, command, arguments: tuple[str, ...], message: str) -> None:
    Path("empty.txt").write_text("")
    Path("half.jsonl").write_text('{"prompt": "\\ud83d\\ude00"}\n{"prompt": "\\ud83d"}\n')
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"text": "a"}\n')
    code, out, err = command("generate", run, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_model_that_fills_in_tokens_writes_no_texts(train, command) -> None:
    run = train(model={"attention": {"heads": 2, "kind": "bidirectional"}}, loss={"kind": "masked"})
    for verb in ("generate", "chat"):
        code, _, err = command(verb, run)
        assert code == 2
        assert "was trained to fill in hidden tokens" in err


def talk(monkeypatch: pytest.MonkeyPatch, command, run: str, lines: str, *options: str) -> tuple[str, str]:
    Path("template.jinja").write_text(TEMPLATE)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, err = command("chat", run, "--template", "template.jinja", "--max-tokens", "6", *options)
    assert code == 0, err
    return out, err


def test_a_conversation_goes_on_and_is_saved(run: str, command, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "/system be brief\nhi\n\nyou\n/save talk.json\n/reset\nhi\n/save again.json\n/nonsense\n"
    out, err = talk(monkeypatch, command, run, lines, "--temperature", "0")
    messages = json.loads(Path("talk.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [message["content"] for message in messages[::2]] == [
        "be brief",
        messages[2]["content"],
        messages[4]["content"],
    ]
    assert [message["content"] for message in messages[1::2]] == ["hi", "you"]
    again = json.loads(Path("again.json").read_text())["messages"]
    assert again == messages[:3]  # forgotten, so that the same question has the same answer
    answers = [messages[2]["content"], messages[4]["content"], messages[2]["content"]]
    assert out == "".join(f"{answer}\n" for answer in answers)
    assert "/nonsense is no command" in err


def test_an_answer_is_what_the_model_writes_behind_the_template(
    run: str, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = talk(monkeypatch, command, run, "hi", "--temperature", "0")
    trained = load_trained(run)
    from quintet.config.generation import GenerationSettings
    from quintet.model.generate import generate

    tokenizer = trained.tokenizer
    ids = [*tokenizer.encode("u: hi"), tokenizer.end_id, *tokenizer.encode("a: ")]
    steps = generate(trained.model, [ids], GenerationSettings(max_tokens=6, temperature=0.0), {tokenizer.end_id})
    expected = tokenizer.decode([token for step in steps for token in step if token is not None])
    assert out.rstrip("\n") == expected


def test_a_template_is_told_the_day_that_is_asked_for(run: str, command) -> None:
    Path("dated.jinja").write_text("{{ raise_exception('it is ' ~ strftime_now('%d %b %Y %H:%M')) }}")
    code, _, err = command("chat", run, "--template", "dated.jinja", "--date", "2024-07-26")
    assert (code, "it is 26 Jul 2024 00:00" in err) == (2, True)
    code, _, err = command("chat", run, "--template", "dated.jinja", "--date", "26.7.2024")
    assert (code, "26.7.2024" in err) == (2, True)


def test_the_oldest_turns_are_forgotten_and_that_is_said(train, command, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(model={}, tokenizer={"kind": "byte"})
    _, err = talk(monkeypatch, command, run, "hi you\nhi you\nhi you\n")
    assert "no longer fit the context of 32 tokens and are forgotten" in err
    _, err = talk(monkeypatch, command, run, f"{'long ' * 20}\nhi\n")
    assert "this question alone has" in err


def test_a_tokenizer_without_a_template_needs_one(run: str, command) -> None:
    code, _, err = command("chat", run)
    assert code == 2
    assert "has no chat template; give one with --template FILE" in err


SIZES: dict[str, tuple[dict[str, int], int]] = {
    "mamba": ({"hidden_size": 32, "state_size": 4, "num_hidden_layers": 1}, 2048),
    "bloom": ({"hidden_size": 32, "n_layer": 1, "n_head": 2}, 2048),
    "mpt": ({"d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": 48}, 48),
    "codegen": ({"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "n_positions": 40, "n_ctx": 40}, 40),
}


@pytest.mark.parametrize("kind", [pytest.param("mamba", marks=pytest.mark.slow), "bloom", "mpt", "codegen"])
def test_a_checkpoint_that_names_its_length_otherwise_or_has_none_writes_as_transformers_does(
    kind: str, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokenizers
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    monkeypatch.chdir(tmp_path)
    made = tokenizers.ByteLevelBPETokenizer()
    made.train_from_iterator(["the cat sat"], vocab_size=280, special_tokens=["<end>"], show_progress=False)
    library = PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token="<end>")
    library.save_pretrained("model")
    sizes, context = SIZES[kind]
    torch.manual_seed(0)
    settings = AutoConfig.for_model(
        kind, vocab_size=len(library), bos_token_id=0, eos_token_id=0, pad_token_id=0, **sizes
    )
    model = AutoModelForCausalLM.from_config(settings).eval()
    model.save_pretrained("model")
    said: list[str] = []
    trained = load_writer("model", say=said.append, precision="fp32")
    assert trained.model.context_length == context
    note = "model: config.json names no maximum number of tokens; 2,048 is used"
    assert (note in said) == (context == 2048)

    from quintet.config.generation import GenerationSettings
    from quintet.model.generate import generate

    ids = library("the cat")["input_ids"]
    steps = generate(trained.model, [ids], GenerationSettings(max_tokens=5, temperature=0.0), set())
    expected = model.generate(torch.tensor([ids]), min_new_tokens=5, max_new_tokens=5, do_sample=False, use_cache=False)
    assert [*ids, *(step[0] for step in steps)] == expected[0].tolist()
    code, out, err = command("generate", "./model", "--prompt", "the cat", "--max-tokens", "5")
    assert (code, out[:7]) == (0, "the cat"), err
