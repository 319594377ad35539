"""Exported runs as transformers loads them, and imported checkpoints as runs start from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.helpers import measured, write_jsonl

from quintet.data.batch import held_out_documents
from quintet.data.prepare import prepare
from quintet.train.trained import load_trained, load_writer

transformers = pytest.importorskip("transformers")

TEXT = "the cat saw a dog"
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "bytes": ({}, {"tokenizer": {"kind": "byte"}}, "LlamaForCausalLM"),
    "bpe": (
        {
            "attention": {"heads": 2, "bias": True},
            "norm": {"kind": "layer"},
            "feedforward": {"kind": "plain", "bias": True},
            "position": {"kind": "learned"},
        },
        {"tokenizer": {"kind": "bpe", "vocab_size": 300}},
        "GPT2LMHeadModel",
    ),
    "characters": (
        {"position": {"pairs": "interleaved"}, "tie_feedforward": True, "pad_vocab_size_multiple": 8},
        {"tokenizer": {"kind": "char"}},
        "LlamaForCausalLM",
    ),
    "low rank": (
        {
            "layers": 4,
            "attention": {"heads": 2, "kv_heads": 1},
            "position": {"pairs": "interleaved"},
            "sharing": {"same": ["attention_output"], "low_rank": ["feedforward", "attention_qkv"], "first_blocks": 1},
        },
        {},
        "LlamaForCausalLM",
    ),
    "low rank with biases": (
        {
            "layers": 4,
            "sharing": {"low_rank": ["feedforward"], "rank": 3, "alpha": 6.0, "bias": True, "last_blocks": 1},
        },
        {},
        "LlamaForCausalLM",
    ),
    "own class, low rank": (
        {"layers": 3, "block": "post_norm", "sharing": {"low_rank": ["feedforward"], "rank": 3}},
        {},
        "QuintetForCausalLM",
    ),
    "own class": ({"block": "post_norm"}, {}, "QuintetForCausalLM"),
    "own class, masked": (
        {"attention": {"heads": 2, "kind": "bidirectional"}},
        {"loss": {"kind": "masked"}},
        "QuintetForMaskedLM",
    ),
}


@pytest.mark.parametrize("name", list(RUNS))
def test_transformers_loads_model_and_tokenizer(name: str, train, command) -> None:
    model, sections, architecture = RUNS[name]
    run = train(model=model, **sections)
    code, out, err = command("export", run, "--to", "huggingface", "out/exported")
    assert code == 0, err
    assert architecture in out
    own = architecture.startswith("Quintet")
    assert ("no class of transformers computes this architecture" in err) is own
    auto = transformers.AutoModelForMaskedLM if "Masked" in architecture else transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained("out/exported", trust_remote_code=own).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("out/exported", trust_remote_code=own)
    assert type(theirs).__name__ == architecture

    trained = load_trained(run)
    ids = tokenizer(TEXT).input_ids
    assert ids == trained.tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == trained.tokenizer.end_id
    inputs = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(theirs(inputs).logits, trained.model(inputs), rtol=1e-5, atol=1e-5)
    card = Path("out/exported/README.md").read_text("utf-8")
    assert f"| class | {architecture} |" in card
    assert f"{trained.progress.validation_loss:.4f} nats a token" in card
    front, run_file = yaml.safe_load(card.split("---")[1]), card.split("```yaml")[1].split("```")[0]
    assert front["library_name"] == "transformers"
    assert yaml.safe_load(run_file)["name"] == run
    assert not list(Path("out").glob(".*"))


def test_our_own_class_generates_and_takes_padding_on_the_left(train, command) -> None:
    run = train(model={"block": "post_norm"}, train={"steps": 30, "batch_size": 8, "precision": "fp32"})
    assert command("export", run, "--to", "huggingface", "exported")[0] == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained("exported", trust_remote_code=True).eval()
    tokenizer = load_trained(run).tokenizer
    ids = tokenizer.encode("the cat")
    code, expected, _ = command("generate", run, "--prompt", "the cat", "--temperature", "0", "--max-tokens", "9")
    assert code == 0
    padded = torch.tensor([[0, 0, *ids]])
    mask = torch.tensor([[0, 0, *([1] * len(ids))]])
    written = theirs.generate(padded, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert tokenizer.decode(written[0, 2:].tolist()) == expected.rstrip("\n")
    labels = torch.tensor([ids])
    loss = theirs(labels, labels=labels).loss
    expected_loss = torch.nn.functional.cross_entropy(theirs(labels).logits[0, :-1], labels[0, 1:])
    torch.testing.assert_close(loss, expected_loss)
    with pytest.raises(ValueError, match="padding on the left only"):
        theirs(padded, attention_mask=mask.flip(1))


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_weights_have_the_type_that_was_asked_for(dtype: str, expected: torch.dtype, train, command) -> None:
    from safetensors.torch import load_file

    run = train(model={})
    assert command("export", run, "--to", "huggingface", "exported", "--dtype", dtype)[0] == 0
    assert {tensor.dtype for tensor in load_file("exported/model.safetensors").values()} == {expected}
    assert transformers.AutoModelForCausalLM.from_pretrained("exported").dtype == expected


def test_a_folder_that_holds_something_is_left_alone(train, command) -> None:
    run = train(model={})
    Path("exported").mkdir()
    Path("exported/mine").write_text("precious")
    code, _, err = command("export", run, "--to", "huggingface", "exported")
    assert code == 2
    assert err == "error: exported: is there already; name a new or an empty folder\n"
    assert [path.name for path in Path("exported").iterdir()] == ["mine"]


def test_a_run_starts_from_an_exported_model_with_its_loss(train, command) -> None:
    first = train(name="first", model={}, train={"steps": 30, "batch_size": 8, "precision": "fp32"})
    assert command("export", first, "--to", "huggingface", "exported")[0] == 0
    code, out, err = command("import", "exported", "--to", "start/imported.yaml")
    assert code == 0, err
    count = sum(parameter.numel() for parameter in load_trained(first).model.parameters())
    assert f"llama with {count:,} parameters" in out
    train("start/imported.yaml", name="second", optimizer={"kind": "adamw", "lr": 1e-12})
    found = measured("runs/second", "validation/loss")
    assert found[-1] == pytest.approx(load_trained(first).progress.validation_loss, rel=1e-4)
    code, _, err = command("import", "exported", "--to", "start/imported.yaml")
    assert code == 2
    assert "exists already" in err


def test_a_run_starts_from_another_run(train, command) -> None:
    first = train(name="first", model={})
    again = {"init": {"kind": "pretrained", "path": "first"}}
    second = train(name="second", model=again, optimizer={"kind": "adamw", "lr": 1e-12})
    before, after = load_trained(first).model.state_dict(), load_trained(second).model.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    Path("other.yaml").write_text(
        Path("second.yaml").read_text().replace("name: second", "name: third").replace("layers: 2", "layers: 3")
    )
    code, _, err = command("train", "other.yaml")
    assert code == 2
    assert "error: model.layers: 3, but runs/first has 2\n" in err


def test_documents_that_a_run_before_was_trained_on_are_counted(train, capfd) -> None:
    """Each run holds out a third of the documents, in the order of its seed."""
    documents = [" ".join(f"w{index}x{word}" for word in range(40)) for index in range(30)]
    write_jsonl(Path("pages.jsonl"), ({"text": text} for text in documents))
    data = {
        "sources": [{"kind": "jsonl", "path": "pages.jsonl"}],
        "validation": 0.3,
        "sequence_length": 32,
        "cache_dir": "cache",
    }
    common: dict[str, Any] = {"model": {}, "data": data, "tokenizer": {"kind": "byte"}}

    def begins_with(run: str) -> dict[str, Any]:
        return {"model": {"init": {"kind": "pretrained", "path": run}}}

    def held_out(run: str) -> set[str]:
        config = load_trained(run).config
        validation, tokenizer = prepare(config).validation, load_trained(run).tokenizer
        assert validation is not None
        return {
            document
            for _, one in held_out_documents(validation, tokenizer)
            for document in documents
            if tokenizer.decode(one.ids.tolist()).strip() in document
        }

    first = train(name="first", seed=1, **common)
    capfd.readouterr()
    train(name="same", seed=1, **common | begins_with(first))
    assert "from which this run starts" not in " ".join(capfd.readouterr().out.split())
    second = train(name="second", seed=2, **common | begins_with(first))
    shown = " ".join(capfd.readouterr().out.split())
    ours, theirs = held_out(second), held_out(first)
    assert ours - theirs
    count = f"was trained on {len(ours - theirs)} of the {len(ours)} held-out documents"
    assert f"runs/first, from which this run starts, {count}" in shown
    train(name="third", seed=2, **common | begins_with(second))  # holds out what the second does
    shown = " ".join(capfd.readouterr().out.split())
    assert "runs/first, from which this run starts, was trained on" in shown
    assert "runs/second, from which this run starts, was trained on" not in shown


def test_a_checkpoint_writes_texts_without_a_run(train, command) -> None:
    run = train(model={}, train={"steps": 30, "batch_size": 8, "precision": "fp32"})
    assert command("export", run, "--to", "huggingface", "exported")[0] == 0
    write = ("--prompt", "the ", "--temperature", "0", "--max-tokens", "12")
    assert command("generate", "exported", *write)[1] == command("generate", run, *write)[1]
    code, _, err = command("generate", "exported", "--checkpoint", "best")
    assert code == 2
    assert "--checkpoint best: exported is not a run" in err


def test_a_checkpoint_of_no_family_writes_texts_as_transformers_does(train, command) -> None:
    run = train(model={}, tokenizer={"kind": "byte"})
    assert command("export", run, "--to", "huggingface", "exported")[0] == 0
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=256,
    )
    theirs = transformers.GPTNeoXForCausalLM(config).eval()
    theirs.save_pretrained("exported")
    ids = load_writer("exported").tokenizer.encode("the cat")
    inputs = torch.tensor([ids])
    expected = theirs.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=8, do_sample=False)
    code, out, err = command("generate", "exported", "--prompt", "the cat", "--temperature", "0", "--max-tokens", "8")
    assert code == 0, err
    assert out.rstrip("\n") == load_writer("exported").tokenizer.decode(expected[0].tolist())
