"""Byte-level embedding and head, against numpy and against SuperTinyLanguageModels.

Figures of the original were taken at its revision 8d498b6 (main) unless another one is named, with
`models/build_models.py: initialize_model`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from tests.helpers import check_continuation, records, refused, run_config, write_corpus
from torch import Tensor

from quintet.config.documents import IGNORED
from quintet.config.loss import NextTokenLossConfig
from quintet.config.model import TransformerConfig
from quintet.export.huggingface import export_huggingface
from quintet.model import Transformer, build_model
from quintet.model.count import count_parameters
from quintet.model.embedding_and_head import ByteEmbedding, ByteHead, Spelling, cut_ids
from quintet.plan import make_plan
from quintet.tokenize import Tokenizer
from quintet.train.loss import Objective
from quintet.train.trained import load_trained

PIECES = [bytes([number]) for number in range(97, 117)]
PIECES += [b"", b"international", b"internationally", b"intern", "ï".encode(), b"", b"in"]
IDS = len(PIECES)


def config_of(**more: Any) -> TransformerConfig:
    values: dict[str, Any] = {
        "layers": 1,
        "width": 24,
        "attention": {"heads": 4},
        "embedding": {"kind": "bytes", "bytes": 6, "width": 8, "heads": 2, "layers": 3},
        "head": {"kind": "bytes", "bytes": 5, "width": 8, "heads": 4, "layers": 2},
        "tie_embeddings": False,
        "init": {"kind": "normal", "std": 0.3},
    }
    return TransformerConfig.model_validate(values | more)


def model_of(**more: Any) -> Transformer:
    model = build_model(config_of(**more), IDS, 16, seed=1, pieces=PIECES)
    assert isinstance(model, Transformer)
    return model.eval()


def some_ids(batch: int = 2, length: int = 9) -> Tensor:
    return torch.randint(IDS, (batch, length), generator=torch.Generator().manual_seed(4))


def test_ids_are_spelled_with_their_bytes_and_those_without_text_with_a_mark_and_a_number() -> None:
    spelling = Spelling([b"a", b"", b"abcdef", b"", b"abcd"], 5 + 300, 4)
    symbols = spelling.symbols.tolist()
    assert symbols[:5] == [
        [97, 256, 256, 256],
        [257, 256, 256, 256],
        [97, 98, 99, 100],
        [257, 1, 256, 256],
        [97, 98, 99, 100],
    ]
    assert symbols[5 + 256] == [257, 2, 1, 256]  # number 258
    assert len({tuple(row) for row in symbols}) == len(symbols) - 1
    assert spelling.log_shares.exp().tolist() == pytest.approx([1, 1, 2, 1, 2] + [1] * 300)
    assert spelling(torch.tensor([[0, 4]])).tolist() == [[symbols[0], symbols[4]]]


def test_what_is_cut_is_counted() -> None:
    assert cut_ids(PIECES, 15) is None
    assert cut_ids(PIECES, 13) == "1 of 27 ids have more than 13 bytes and are spelled by their first 13; " + (
        "1 of them are spelled like another id"
    )
    assert cut_ids([b"abc", b"xyz", b"z"], 2) == "2 of 3 ids have more than 2 bytes and are spelled by their first 2"


# An implementation of its own, from the description alone.


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def block(x: np.ndarray, state: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """One id: [bytes, width]."""
    normed = rms(x, state["attention_norm.weight"])
    queries, keys, values = np.split(normed @ state["qkv.weight"].T, 3, axis=-1)
    size = x.shape[-1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = np.exp(queries[:, part] @ keys[:, part].T / math.sqrt(size))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ values[:, part])
    x = x + np.concatenate(mixed, axis=-1) @ state["output.weight"].T
    inner = rms(x, state["feedforward_norm.weight"]) @ state["up.weight"].T
    return (inner * 0.5 * (1 + erf(inner / math.sqrt(2)))) @ state["down.weight"].T


def state_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def blocks_of(state: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    count = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    for number in range(count):
        begin = f"blocks.{number}."
        yield {name.removeprefix(begin): value for name, value in state.items() if name.startswith(begin)}


def test_the_embedding_is_the_mean_of_the_mixed_bytes() -> None:
    model, ids = model_of(), some_ids()
    assert isinstance(model.embedding, ByteEmbedding)
    state, found = state_of(model.embedding), model.embed(ids).detach().numpy()
    for place in np.ndindex(*ids.shape):
        x = state["symbols.weight"][model.embedding.spelling.symbols[ids[place]].numpy()] + state["position.weight"]
        for one in blocks_of(state):
            x = block(x, one, heads=2)
        assert found[place] == pytest.approx(x.mean(0), abs=1e-4, rel=1e-4)


def test_the_probability_of_an_id_is_the_product_over_its_symbols_shared_among_those_spelled_alike() -> None:
    model, ids = model_of(), some_ids(1, 4)
    assert isinstance(model.head, ByteHead)
    hidden = model.hidden(ids)
    state, found = state_of(model.head), model.logits(hidden).detach().numpy()
    symbols = [tuple(row) for row in model.head.spelling.symbols.tolist()]
    for place in range(4):
        x = (state["projection.weight"] @ hidden[0, place].detach().double().numpy()).reshape(5, 8)
        x = x + x + state["position.weight"]  # the original adds the projection to itself with the places
        for one in blocks_of(state):
            x = block(x, one, heads=4)
        odds = np.exp(x @ state["symbols.weight"].T)
        shares = odds / odds.sum(-1, keepdims=True)
        expected = [math.prod(shares[at, symbol] for at, symbol in enumerate(row)) for row in symbols]
        expected = [chance / symbols.count(row) for chance, row in zip(expected, symbols, strict=True)]
        assert found[0, place] == pytest.approx(np.log(expected), abs=1e-3, rel=1e-4)
        assert sum(expected) < 1


@pytest.mark.parametrize("reconstruction", [0.0, 0.5])
def test_the_loss_is_that_of_the_ids_and_reconstruction_counts_in_training_alone(reconstruction: float) -> None:
    config = config_of()
    assert config.head.kind == "bytes"
    model = model_of(head=config.head.model_copy(update={"reconstruction": reconstruction}))
    objective = Objective(NextTokenLossConfig(), model.config, IDS, 0, seed=0)
    inputs, targets = some_ids()[:, :-1], some_ids()[:, 1:].clone()
    targets[0, 2:5] = IGNORED
    valid = targets != IGNORED
    plain = -model(inputs).gather(-1, targets.clamp(min=0)[..., None])[..., 0][valid].sum().item()
    assert objective.loss(model, inputs, targets, plain=True).item() == pytest.approx(plain, rel=1e-5)
    again = -model.logits(model.norm(model.embed(inputs))).gather(-1, inputs[..., None])[..., 0][valid].sum().item()
    expected = plain + reconstruction * again
    assert objective.loss(model, inputs, targets).item() == pytest.approx(expected, rel=1e-5)


def stlm(layers: int, width: int, hidden: int, **more: Any) -> TransformerConfig:
    """The core of STLM's byte-level files, with the embedding of its revision."""
    values: dict[str, Any] = {
        "layers": layers,
        "width": width,
        "attention": {"heads": 16, "kv_heads": 4},
        "feedforward": {"kind": "gated", "width": hidden},
        "norm": {"kind": "rms", "eps": 1e-6},
        "position": {"kind": "rope", "pairs": "interleaved"},
        "tie_embeddings": False,
        "embedding": {"kind": "bytes"},
    }
    return TransformerConfig.model_validate(values | more)


BYTES_OUT = {"kind": "bytes", "norm": {"kind": "none"}}
COUNTS = {
    "byte_level": (stlm(10, 768, 1536, head=BYTES_OUT), 55_924_736),
    "byte_level of 512 features": (stlm(10, 512, 1536, head=BYTES_OUT), 35_275_776),
    "byte_level with biases in attention": (
        stlm(10, 512, 1536, head=BYTES_OUT, attention={"heads": 16, "kv_heads": 4, "bias": True}),
        35_288_576,
    ),
    "byte_level_ffn_sharing": (stlm(16, 512, 1536, head=BYTES_OUT, tie_feedforward=True), 17_980_416),
    "baseline_byte_encoder, f60c717": (stlm(8, 512, 1320), 50_123_264),
    "byte_level, two blocks at both ends, 6b7752c": (
        stlm(10, 512, 1536, embedding={"kind": "bytes", "layers": 2}, head=BYTES_OUT | {"layers": 2}),
        32_717_568,
    ),
}


@pytest.mark.parametrize(("config", "expected"), COUNTS.values(), ids=list(COUNTS))
def test_parameters_are_those_of_the_original(config: TransformerConfig, expected: int) -> None:
    assert count_parameters(config, 50257, 512).total == expected


def ordered_names() -> list[str]:
    """Our names in the order of the numbers of the original's weights."""
    parts = ["attention_norm", "qkv", "output", "feedforward_norm", "up", "down"]
    core = ["attention_norm", "attention.qkv", "attention.output", "feedforward_norm"]
    core += [f"feedforward.{name}" for name in ("gate", "up", "down")]
    names = ["embedding.symbols", "embedding.position"]
    names += [f"embedding.blocks.{layer}.{part}" for layer in range(4) for part in parts]
    names += [f"blocks.0.{part}" for part in core]
    names += ["head.projection", "head.position"]
    names += [f"head.blocks.{layer}.{part}" for layer in range(7) for part in parts]
    return [f"{name}.weight" for name in (*names, "head.symbols")]


def test_logits_and_losses_are_those_of_the_original_with_the_same_weights() -> None:
    """A model of one layer; weight number k of the list has the values 0.7 · sin(0.37 n² + k), in fp64."""
    end = {"kind": "bytes", "bytes": 6, "width": 16}
    attention, head = {"heads": 4, "kv_heads": 2}, end | BYTES_OUT | {"reconstruction": 1.0}
    config = stlm(1, 24, 20, embedding=end, head=head, attention=attention)
    words = [b"the", b" quick", b" brown", b" foxes are", "ï".encode()[:1]]
    model = build_model(config, len(words), 16, seed=0, pieces=words).double().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 75_856
    with torch.no_grad():
        for number, name in enumerate(ordered_names()):
            weight = model.get_parameter(name)
            places = torch.arange(weight.numel(), dtype=torch.float64)
            values = torch.sin(places.square() * 0.37 + number).mul(0.7)
            weight.copy_(values.reshape(weight.shape).float())  # the original's weights are fp32
    assert isinstance(model, Transformer)
    assert isinstance(model.head, ByteHead)
    ids = torch.arange(len(words))[None]
    logits = model.head(model.hidden(ids)).detach()
    expected = [0.872606, 0.219338, 0.267415, 1.023476, 0.276897, 2.158701]
    assert logits[0, -1, :, 101].tolist() == pytest.approx(expected, abs=1e-5)
    expected = [13.686563, -3.313247, 0.417901, -11.211407, 4.549952]
    assert logits[0, 2, 1, [0, 97, 255, 256, 257]].tolist() == pytest.approx(expected, abs=1e-5)
    # Its loss is the mean over the bytes of a token, ours the sum; and so is that of the reconstruction.
    objective = Objective(NextTokenLossConfig(), config, len(words), 0, seed=0)
    loss = objective.loss(model, ids[:, :-1], ids[:, 1:], plain=True).item()
    assert loss / (4 * 6) == pytest.approx(17.845304406494595, rel=1e-6)
    more = objective.loss(model, ids, ids).item() - objective.loss(model, ids, ids, plain=True).item()
    assert more / (5 * 6) == pytest.approx(19.551064035854726, rel=1e-6)


def test_a_byte_level_part_has_no_matrix_to_tie() -> None:
    for part in ("embedding", "head"):
        with pytest.raises(ValueError, match=f"a byte-level {part} has no rows of ids to share; set it to false"):
            TransformerConfig.model_validate({part: {"kind": "bytes"}})
    with pytest.raises(ValueError, match="3 heads do not divide width 128"):
        config_of(embedding={"kind": "bytes", "heads": 3})


MODEL = {
    "kind": "transformer",
    "layers": 1,
    "width": 16,
    "attention": {"heads": 2},
    "embedding": {"kind": "bytes", "bytes": 4, "width": 8, "heads": 2, "layers": 2, "dropout": 0.1},
    "head": {"kind": "bytes", "bytes": 4, "width": 8, "heads": 2, "layers": 1, "dropout": 0.1, "reconstruction": 0.5},
    "tie_embeddings": False,
    "residual_dropout": 0.1,
}


@pytest.mark.parametrize("masked", [False, True], ids=["next token", "masked"])
def test_a_run_trains_continues_to_the_bit_and_is_read(tmp_path: Path, masked: bool) -> None:
    write_corpus(tmp_path / "corpus")
    model = MODEL | {"attention": {"kind": "bidirectional", "heads": 2}} if masked else MODEL

    def config(name: str, steps: int) -> Any:
        return run_config(
            tmp_path,
            name=name,
            model=model,
            loss={"kind": "masked" if masked else "next_token"},
            tokenizer={"kind": "bpe", "vocab_size": 300},
            schedule={"kind": "constant"},
            optimizer={"lr": 0.01},
            train={"steps": steps, "log_every": 1},
            evaluate={"every": 3, "samples": 8},
        )

    whole = check_continuation(config)
    losses = [row["train/loss"] for row in records(whole.folder) if "train/loss" in row]
    assert losses[-1] < losses[0] - 0.05
    plan = make_plan(config("whole", 6))
    rows = [parameter.numel() for parameter in whole.model.parameters()]
    assert plan.parameters is not None
    assert plan.parameters.total == sum(rows)

    read = load_trained(str(whole.folder))
    assert isinstance(read.model, Transformer)
    assert isinstance(read.model.embedding, ByteEmbedding)
    assert torch.equal(read.model.embedding.spelling.symbols, spelled(read.tokenizer, plus=masked))
    if not masked:
        ids, written = read.tokenizer.encode("the cat"), list[int]()
        while len(written) < 5 and read.tokenizer.end_id not in written:
            written.append(int(read.logits(ids + written)[-1].argmax()))
        assert read.generate("the cat", max_tokens=5, temperature=0) == read.tokenizer.decode(written)
    assert "a byte-level embedding or head" in refused(export_huggingface, read, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def spelled(tokenizer: Tokenizer, plus: bool) -> Tensor:
    """The symbols, four per id, of the end of a document, the only id without text, and of a mask after it."""
    rows = []
    for number in range(tokenizer.vocab_size + plus):
        text = tokenizer.pieces.of(number)[:4]
        mark = [257] if number == tokenizer.end_id else [257, 1]
        rows.append((list(text) or mark) + [256] * 4)
    return torch.tensor([row[:4] for row in rows], dtype=torch.int32)
