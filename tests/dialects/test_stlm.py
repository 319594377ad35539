"""STLM: each key changes what its document says it changes, in the run that is really built."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.checkpoints import tiny_llama, word_tokenizer
from tests.dialects.conftest import Made, Make, Said, changes, each_changes
from tests.helpers import PEAK
from torch import nn

from quintet.data.prepare import build_tokenizer_of
from quintet.errors import UserError
from quintet.track.console import Reporter
from quintet.train.loop import train
from quintet.train.model import build_run_model
from quintet.train.schedule import learning_rate

DIALECT = "stlm"
TOKENIZERS: dict[str, Any] = {}
EXPERIMENT = "belongs to an experiment"
_DRAW = random.Random(1)
WORDS = [
    *("the", "a", "cat", "dog", "saw", "chased", "1986", "big", "and", "naïve", "ñandú"),
    *("".join(_DRAW.choices("abcdefghijklmnop", k=_DRAW.randint(2, 7))) for _ in range(150)),
]


def write_texts(file: Path, seed: int, texts: int = 200, words: list[str] = WORDS) -> Path:
    draw = random.Random(seed)
    lines = (" ".join(draw.choice(words) for _ in range(40)) for _ in range(texts))
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), "utf-8")
    return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora, and a cache that all tests of the module share."""
    return write_corpora(tmp_path_factory.mktemp("stlm"))


def write_corpora(folder: Path) -> Path:
    """Texts of two vocabularies."""
    write_texts(folder / "texts.jsonl", 5)
    write_texts(folder / "other.jsonl", 6, words=["zebra", "yak", "xylophone", "quartz"])
    return folder


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> Path:
    """A tiny Llama as Hugging Face stores one, with a tokenizer of words."""
    import transformers

    folder = place / "llama"
    tiny_llama(len(WORDS) + 2, bos_token_id=1, eos_token_id=1).save_pretrained(folder)
    words = word_tokenizer({"<unk>": 0, "</s>": 1} | {word: i for i, word in enumerate(WORDS, start=2)}, "</s>")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>").save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def base(place: Path) -> dict[str, Any]:
    return small_file(place)


def small_file(place: Path) -> dict[str, Any]:
    """A complete file that trains in a moment."""
    return {
        "model": {
            "core_model_type": "generic",
            "num_layers": 2,
            "hidden_dim": 16,
            "context_window": 16,
            "vocab_size": 300,
            "tokenizer_type": "bpe",
            "positional_encoding_type": "rope",
            "ffn": {"ffn_type": "generic", "ffn_dim": 24},
            "attn": {"attn_type": "causal", "num_kv_heads": 2},
        },
        "trainer": {
            "dataset": str(place / "texts.jsonl"),
            "batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_iters": 4,
            "eval": {"dataset_loss_eval_iters": 2, "text_modeling_eval": False},
        },
        "quintet": {"data": {"cache_dir": str(place / "cache")}, "train": {"device": "cpu", "precision": "fp32"}},
    }


HF = {"model.core_model_type": "hf_core", "model.embedding_model_type": "hf_embedder", "model.lm_head_type": "hf_head"}


@pytest.fixture
def make_hf(make: Make, checkpoint: Path) -> Make:
    """``make`` with the tiny Llama as the model."""
    return lambda changes=None, **more: make(
        HF | {"model.model_string": str(checkpoint)} | (changes or {}), without=["model.tokenizer_type"], **more
    )


def refused(make: Make, changes: dict[str, Any], **more: Any) -> str:
    with pytest.raises(UserError) as error:
        make(changes, **more).run  # noqa: B018
    return "\n".join(error.value.problems)


def own(made: Made) -> Any:
    """The model that the run would train, built by itself; as Any, for its parts are found by the names of its class.

    Building it alone leaves out what a run measures before it starts, and a tokenizer is made once.
    """
    if "own" not in vars(made):
        config = made.config
        key = json.dumps([config.tokenizer.model_dump(), str(config.data.sources)])
        if key not in TOKENIZERS:
            TOKENIZERS[key] = build_tokenizer_of(config)
        vars(made)["own"] = build_run_model(config, TOKENIZERS[key])
    return vars(made)["own"]


def shapes(made: Made) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by name."""
    return {name: tuple(parameter.shape) for name, parameter in own(made).named_parameters()}


def dropouts(made: Made) -> dict[str, float]:
    """Rate of every dropout, by name, those of 0 left out."""
    found = {name: module.p for name, module in own(made).named_modules() if isinstance(module, nn.Dropout)}
    return {name: rate for name, rate in found.items() if rate}


def only_in(more: Made, fewer: Made) -> set[str]:
    return {name.removeprefix("blocks.") for name in shapes(more).keys() - shapes(fewer).keys()}


def rates(made: Made) -> list[float]:
    """The learning rate of every step."""
    run = made.config
    steps = run.train.steps
    assert steps is not None
    return [learning_rate(run.schedule, run.optimizer.lr, step, steps) for step in range(1, steps + 1)]


def loss_of_leak(made: Made) -> bool:
    """Whether the logits of a position change with a token behind it."""
    model, ids = own(made).eval(), torch.arange(8)[None] + 30
    other = ids.clone()
    other[0, -1] = 99
    with torch.no_grad():
        return not torch.allclose(model(ids)[:, :-1], model(other)[:, :-1])


@changes("model.core_model_type")
def test_core_model_type(make: Make) -> None:
    assert type(own(make())).__name__ == "Transformer"
    assert "core_model_type: hf_core needs the name of a checkpoint" in refused(make, HF)
    assert "'cascade' belongs to an experiment" in refused(make, {"model.core_model_type": "cascade"})
    inner = {"model.core_model_type": "ffn_lora_sharing", "model.k_interior_layers": 0, "model.num_layers": 4}
    sharing: Any = make({**inner, "model.lora_rank": 2, "model.lora_alpha": 3}).config.model.sharing  # pyright: ignore
    assert (sharing.first_blocks, sharing.last_blocks, sharing.rank, sharing.scale) == (1, 0, 2, 1.5)
    assert make(inner).config.model.sharing.same == ("attention_output", "feedforward")  # pyright: ignore


@changes("model.k_interior_layers", "model.lora_rank", "model.lora_alpha")
def test_shared_inside(make: Make) -> None:
    """Of 6 blocks the first two and the last one are their own, and those between share with differences of rank 2."""
    inner = {"model.core_model_type": "ffn_lora_sharing", "model.num_layers": 6, "model.lora_rank": 2}
    found = shapes(make({**inner, "model.k_interior_layers": 1}))
    blocks = {int(name.split(".")[1]) for name in found if name.startswith("blocks.") and "up.weight" in name}
    assert blocks == {0, 1, 5}
    ranks = {min(shape) for name, shape in found.items() if "difference" in name}
    assert ranks == {2}
    other: Any = make({**inner, "model.k_interior_layers": 0, "model.lora_alpha": 3}).config.model.sharing  # pyright: ignore
    assert (other.first_blocks, other.last_blocks, other.scale) == (1, 0, 1.5)
    assert make({**inner, "model.k_interior_layers": 0}).config.model.sharing.scale == 0.5  # pyright: ignore


@changes("model.embedding_dim")
def test_embedding_width(make: Make) -> None:
    """It is a second word for the width, and in experiments another one."""
    assert shapes(make({"model.embedding_dim": 16}))["embedding.weight"][1] == 16
    assert EXPERIMENT in refused(make, {"model.embedding_dim": 8})


@changes("model.vocab_size")
def test_vocab_size(make: Make) -> None:
    larger = make({"model.vocab_size": 310})
    assert shapes(larger)["embedding.weight"] == (310, 16)
    assert larger.run.tokenizer.vocab_size == 310


@each_changes("part", ("model.ffn_weight_tying", "up.weight"), ("model.c_proj_weight_tying", "output.weight"))
def test_tied_in_all_blocks(make: Make, key: str, part: str) -> None:
    apart, together = make(), make({key: True})
    counts = [sum(part in one for one in shapes(made)) for made in (apart, together)]
    assert counts == [2, 1]
    assert sum("norm.weight" in one for one in shapes(together)) == 5


@changes("model.freeze_core")
def test_freeze_core(make_hf: Make) -> None:
    def free(changes: dict[str, Any]) -> set[str]:
        return {name for name, one in own(make_hf(changes)).named_parameters() if one.requires_grad}

    frozen, free_ = free({}), free({"model.freeze_core": False})
    assert {name.split("inner.")[-1] for name in frozen} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert len(free_) > len(frozen)


@changes("model.model_string")
def test_model_string(make_hf: Make) -> None:
    import transformers

    made = make_hf()
    library = transformers.AutoModelForCausalLM.from_pretrained(made.config.model.name_or_path)  # pyright: ignore
    model, ids = own(made).eval(), torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids), library(ids).logits, atol=1e-5)
    assert made.run.tokenizer.decode(made.run.tokenizer.encode("the cat")) == "the cat"


@changes("model.flash_attention")
def test_flash(make: Make) -> None:
    assert make({"model.flash_attention": True}).config.model.attention.backend == "flash"  # pyright: ignore
    assert make({"model.flash_attention": False}).config.model.attention.backend == "auto"  # pyright: ignore


@changes("model.use_lora", "model.lora_targets")
def test_lora(make_hf: Make) -> None:
    pytest.importorskip("peft")
    made = make_hf({"model.use_lora": True, "model.lora_targets": ["q_proj"]})
    learns = {name: tuple(one.shape) for name, one in own(made).named_parameters() if one.requires_grad}
    assert sorted(learns.values()) == [(8, 16), (16, 8)]
    assert all("q_proj" in name for name in learns)
    wider = make_hf({"model.use_lora": True, "model.lora_targets": ["q_proj", "v_proj"]})
    assert sum(one.requires_grad for one in own(wider).parameters()) == 4


def test_a_checkpoint_keeps_its_embedding_head_and_tokenizer(make_hf: Make) -> None:
    """A new embedding or head has other ids than the checkpoint, so that its own would be wrong in their place."""
    kept = "hf_core keeps the embedding, the head and the tokenizer of its checkpoint"
    for name in ("embedding_model_type", "lm_head_type"):
        assert kept in refused(make_hf, {f"model.{name}": "generic"})
    told = make_hf({"model.tokenizer_type": "gpt2"})
    assert told.config.tokenizer.kind == "huggingface"
    assert any("model.tokenizer_type: hf_embedder has the tokenizer" in note for note in told.loaded.notes)


@each_changes("value", ("model.embedding_model_type", "hf_embedder"), ("model.lm_head_type", "hf_head"))
def test_a_part_of_hf_alone(make: Make, key: str, value: str) -> None:
    assert "goes with core_model_type: hf_core alone" in refused(make, {key: value})


@changes("model.embedding_weight_tying")
def test_tied_embedding(make: Make) -> None:
    assert "head.weight" not in shapes(make())
    assert only_in(make({"model.embedding_weight_tying": False}), make()) == {"head.weight"}


@changes("model.tokenizer_type")
def test_tokenizer_type(make: Make) -> None:
    shared = Path(os.environ.get("QUINTET_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    if not (shared / "tokenizers/tiktoken").is_dir():
        pytest.skip("no tokenizer files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tokenizers/tiktoken"))
        _tokenizers_of_openai(make)
    for name, hub, local, hello in (
        ("llama_32k", "chavinlo/alpaca-native", "llama2", 15043),
        ("opt_50k", "facebook/opt-1.3b", "opt", 31414),
        ("mistral_32k", "mistralai/Mistral-7B-v0.1", "mistral-v1", 22557),
    ):
        changes = {"model.tokenizer_type": name, "model.vocab_size": 50300}
        assert make(changes).config.tokenizer.path == hub  # pyright: ignore
        here = make(changes | {"quintet.tokenizer.path": str(shared / "tokenizers/hf" / local)})
        assert hello in build_tokenizer_of(here.config).encode("Hello")[:2]


def _tokenizers_of_openai(make: Make) -> None:
    ids = {"GPT-2": (50257, 15496), "p50k_base": (50281, 15496), "cl100k_base": (100277, 9906)}
    for name, (size, hello) in (ids | {"o200k_base": (200019, 13225)}).items():
        made = make({"model.tokenizer_type": name, "model.vocab_size": size})
        assert build_tokenizer_of(made.config).encode("Hello")[0] == hello
    same = make({"model.tokenizer_type": "p50k", "model.vocab_size": 50281})
    assert (
        same.config.tokenizer == make({"model.tokenizer_type": "p50k_base", "model.vocab_size": 50281}).config.tokenizer
    )
    assert "fewer than" in refused(make, {"model.tokenizer_type": "gpt2", "model.vocab_size": 300})


@changes("model.tokenizer_dataset_name")
def test_tokenizer_dataset(make: Make, place: Path) -> None:
    texts, other = str(place / "texts.jsonl"), str(place / "other.jsonl")
    zebra, here, same = (
        build_tokenizer_of(make({"model.tokenizer_dataset_name": name}).config) for name in (other, None, texts)
    )
    assert len(zebra.encode("zebra")) < len(here.encode("zebra"))
    assert len(zebra.encode(" ".join(WORDS))) > len(here.encode(" ".join(WORDS)))
    assert same.fingerprint == here.fingerprint


@changes("model.tokenizer_simplify")
def test_simplify(make: Make) -> None:
    simple, whole = (build_tokenizer_of(make({"model.tokenizer_simplify": flag}).config) for flag in (True, False))
    assert simple.decode(simple.encode("naïve ñandú 漢字")) == "naive nandu "
    assert whole.decode(whole.encode("naïve ñandú")) == "naïve ñandú"
    assert len(simple.encode("1986")) == 4
    again = build_tokenizer_of(make({"model.tokenizer_type": "bpe-retrain"}).config)  # GPT-2's own, on other texts
    assert again.fingerprint == whole.fingerprint


@each_changes(
    "find bias",
    ("model.lm_head_normalization", lambda m: m.norm, "model.lm_head_bias"),
    ("model.ffn.normalization", lambda m: m.blocks[0].feedforward_norm, "model.ffn.bias"),
    ("model.attn.normalization", lambda m: m.blocks[0].attention_norm, "model.attn.bias"),
)
def test_the_norm_of_a_place(make: Make, key: str, find: Callable[[Any], Any], bias: str) -> None:
    """It alone changes, and its bias is that of the section that it stands in."""
    x = torch.randn(3, 16) + 1
    rms, layer, none = (make({key: kind, bias: True}) for kind in ("rms_norm", "layer_norm", "none"))
    expected = [F.rms_norm(x, (16,), eps=1e-6), F.layer_norm(x, (16,), eps=1e-5), x]
    for made, there in zip((rms, layer, none), expected, strict=True):
        assert torch.allclose(find(own(made))(x), there, atol=1e-6)
    assert find(own(layer)).bias is not None
    assert find(own(make({key: "layer_norm"}))).bias is None
    assert sum(isinstance(one, nn.LayerNorm) for one in own(layer).modules()) < 5


@changes("model.norm_bias")
def test_norm_bias(make: Make) -> None:
    """Of both norms of each block, whatever the other biases are; the head has its own."""
    layer = {f"model.{part}": "layer_norm" for part in ("attn.normalization", "ffn.normalization")}
    layer["model.lm_head_normalization"] = "layer_norm"
    norms = {"blocks.0.attention_norm.bias", "blocks.0.feedforward_norm.bias"}
    with_biases = shapes(make(layer | {"model.norm_bias": True})).keys()
    assert norms <= with_biases
    assert "norm.bias" not in with_biases
    without = shapes(make(layer | {"model.norm_bias": False, "model.attn.bias": True, "model.ffn.bias": True})).keys()
    assert not norms & without
    assert "blocks.0.attention.output.bias" in without


@each_changes(
    "count name",
    ("model.embedding_dropout", 1, "dropout"),
    ("model.lm_head_dropout", 1, "dropout"),
    ("model.ffn.ffn_dropout", 2, "feedforward_dropout"),
    ("model.attn.attn_dropout", 2, "attention.input_dropout"),
)
def test_one_dropout(make: Make, key: str, count: int, name: str) -> None:
    found = dropouts(make({key: 0.25}))
    assert set(found.values()) == {0.25}
    assert len(found) == count
    assert all(one.endswith(name) for one in found)
    assert not dropouts(make({key: False}))


@changes("model.positional_encoding_type")
def test_positions(make: Make) -> None:
    """Learned vectors are parameters; without any position, and full attention, the order of tokens says nothing."""

    def knows_order(kind: str) -> bool:
        made = make({"model.positional_encoding_type": kind, "model.attn.attn_type": "bidirectional"})
        model, ids = own(made).eval(), torch.arange(30, 38)[None]
        with torch.no_grad():
            return not torch.allclose(model(ids).flip(1), model(ids.flip(1)), atol=1e-5)

    assert [knows_order(kind) for kind in ("none", "rope", "sincos", "learned")] == [False, True, True, True]
    added = only_in(make({"model.positional_encoding_type": "learned"}), make())
    assert added == {"position.weight"}
    assert "position.weight" not in shapes(make({"model.positional_encoding_type": "sincos"}))


def spread(made: Made) -> float:
    """Standard deviation of the weights of the first feed-forward layer."""
    return float(own(made).blocks[0].feedforward.up.weight.detach().std())


WIDE = {"model.ffn.ffn_dim": 2048}


@changes("model.initialization_fn")
def test_initialization(make: Make) -> None:
    fan_in, fan_out = 16, 2048
    kaiming, xavier, none, null = (
        spread(make(WIDE | {"model.initialization_fn": kind})) for kind in ("kaiming", "xavier", "none", None)
    )
    assert kaiming == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
    assert xavier == pytest.approx(math.sqrt(2 / (fan_in + fan_out)), rel=0.02)
    assert none == null == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.02)


@changes("model.gain")
def test_gain(make: Make) -> None:
    one, two = (spread(make(WIDE | {"model.initialization_fn": "xavier", "model.gain": g})) for g in (1.0, 2.0))
    assert two == pytest.approx(2 * one, rel=1e-4)
    assert "is for initialization_fn: xavier" in refused(make, {"model.gain": 2.0})


@changes("model.mode")
def test_mode(make: Make) -> None:
    assert spread(make(WIDE | {"model.mode": "fan_out"})) == pytest.approx(math.sqrt(2 / 2048), rel=0.02)


@changes("model.nonlinearity")
def test_nonlinearity(make: Make) -> None:
    assert spread(make(WIDE | {"model.nonlinearity": "tanh"})) == pytest.approx(5 / 3 / math.sqrt(16), rel=0.02)
    assert spread(make(WIDE | {"model.nonlinearity": "linear"})) == pytest.approx(1 / math.sqrt(16), rel=0.02)


@changes("model.ffn.ffn_type")
def test_ffn_type(make: Make) -> None:
    made = make({"model.ffn.ffn_type": "silu_ffn"})
    ffn, x = own(made).blocks[0].feedforward, torch.randn(5, 16)
    assert torch.allclose(ffn(x), ffn.down(F.silu(ffn.gate(x)) * ffn.up(x)))
    assert only_in(made, make()) == {"0.feedforward.gate.weight", "1.feedforward.gate.weight"}


@changes("model.ffn.activation")
def test_activation(make: Make) -> None:
    x = torch.randn(5, 16)
    known = {
        "gelu": F.gelu,
        "relu": F.relu,
        "leakyrelu": lambda x: F.leaky_relu(x, 0.01),
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "none": lambda x: x,
    }
    for name, function in known.items():
        ffn = own(make({"model.ffn.activation": name})).blocks[0].feedforward
        assert torch.allclose(ffn(x), ffn.down(function(ffn.up(x))), atol=1e-6), name


def heads(q: int | None, kv: int, group: int | None = None) -> Callable[[Make], tuple[int, int]]:
    def read(make: Make) -> tuple[int, int]:
        changes = {"model.attn.num_q_heads": q, "model.attn.num_kv_heads": kv, "model.attn.group_size": group}
        attention = own(make(changes)).blocks[0].attention
        assert attention.qkv.weight.shape == ((attention.heads + 2 * attention.kv_heads) * 16 // attention.heads, 16)
        return attention.heads, attention.kv_heads

    return read


@changes("model.attn.num_kv_heads", "model.attn.num_q_heads")
def test_kv_heads(make: Make) -> None:
    assert heads(None, 4)(make) == (4, 4)
    assert heads(4, 2)(make) == (4, 2)
    assert heads(2, 4)(make) == (4, 2)  # STLM's own files have them swapped
    assert "does not divide" in refused(make, {"model.attn.num_q_heads": 4, "model.attn.num_kv_heads": 3})


@changes("model.attn.group_size")
def test_group_size(make: Make) -> None:
    assert heads(4, 4, None)(make) == (4, 4)
    without = make({"model.attn.num_heads": 4, "model.attn.group_size": 4}, without=["model.attn.num_kv_heads"])
    assert (own(without).blocks[0].attention.heads, own(without).blocks[0].attention.kv_heads) == (4, 1)
    assert "does not divide the 2 heads" in refused(make, {"model.attn.group_size": 3})


@changes("model.attn.is_causal")
def test_is_causal(make: Make) -> None:
    generic = {"model.attn.attn_type": "generic"}
    assert not loss_of_leak(make(generic | {"model.attn.is_causal": True}))
    assert loss_of_leak(make(generic | {"model.attn.is_causal": False}))
    assert "contradicts" in refused(make, {"model.attn.is_causal": False})


@changes("model.attn.attn_type")
def test_attn_type(make: Make) -> None:
    assert not loss_of_leak(make())
    both = make({"model.attn.attn_type": "bidirectional"})
    assert loss_of_leak(both)
    assert any("next_token_mlm hides" in note for note in both.loaded.notes)


@changes("trainer.dataset")
def test_dataset(make: Make, place: Path) -> None:
    several = make({"trainer.dataset": [str(place / "texts.jsonl"), str(place / "other.jsonl")]})
    assert several.run.data.epoch_samples > 1.3 * make().run.data.epoch_samples
    hub = make({"trainer.dataset": "simple_en_wiki"}).config.data.sources[0]
    assert (hub.kind, hub.path, hub.name) == ("huggingface", "wikimedia/wikipedia", "20231101.simple")  # pyright: ignore
    assert "did you mean 'simple_en_wiki'" in refused(make, {"trainer.dataset": "simple_en_wik"})


@changes("trainer.decay_lr")
def test_decay(make: Make) -> None:
    made = make({"trainer.decay_lr": False, "trainer.warmup_iters": 2})
    assert rates(made) == pytest.approx([0.0, 3e-4, 6e-4, 6e-4])


@changes("trainer.lr_decay_iters")
def test_decay_iters(make: Make) -> None:
    made = make({"trainer.lr_decay_iters": 2, "trainer.optimizer.min_lr": 0.0})
    assert rates(made) == pytest.approx([6e-4, 3e-4, 0.0, 0.0])


@changes("trainer.warmup_iters")
def test_warmup(make: Make) -> None:
    made = make({"trainer.warmup_iters": 2, "trainer.optimizer.min_lr": 0.0})
    expected = [0.0, 3e-4, 6e-4, 3e-4 * (1 + math.cos(math.pi / 4))]
    assert rates(made) == pytest.approx(expected)
    assert made.rates == pytest.approx(expected)  # those that the trained run had


@changes("trainer.optimizer.warmup_iters")
def test_unread_warmup(make: Make) -> None:
    alone = make({"trainer.optimizer.warmup_iters": 2})
    assert rates(alone)[:2] == pytest.approx([0.0, 3e-4])
    both = make({"trainer.optimizer.warmup_iters": 3, "trainer.warmup_iters": 2})
    assert rates(both) == rates(make({"trainer.warmup_iters": 2}))
    assert any("STLM reads the 2 of trainer.warmup_iters" in note for note in both.loaded.notes)


@changes("trainer.eval_interval")
def test_evaluations(make: Make) -> None:
    assert list(make({"trainer.eval_interval": 3}).metrics("validation/loss")) == [0, 3]


@changes("trainer.run_eval")
def test_no_evaluations(make: Make) -> None:
    assert list(make({"trainer.run_eval": False}).metrics("validation/loss")) == []


def benchmark_files(place: Path) -> dict[str, Any]:
    """Items of COPA in a folder, and where the run finds them."""
    folder = place / "items"
    folder.mkdir(exist_ok=True)
    item = {"premise": "The cat saw.", "choice1": "A dog.", "choice2": "A mat.", "question": "cause", "label": 1}
    lines = (json.dumps({"original": {**item, "idx": index}}) + "\n" for index in range(5))
    (folder / "copa.jsonl").write_text("".join(lines))
    return {"quintet.evaluate.data_dir": str(folder), "trainer.eval_interval": 2}


@changes("trainer.eval.mcq_benchmarks")
def test_benchmarks(make: Make, place: Path) -> None:
    made = make({"trainer.eval.mcq_benchmarks": ["copa"], **benchmark_files(place)})
    assert list(made.metrics("benchmark/copa/acc")) == [2, 4]
    assert "benchmark/copa/margin" in (made.trained / "metrics.jsonl").read_text()
    assert not make({}).config.evaluate.tasks
    older = make({"trainer.eval.mcq_benchmarks": "winograd", "trainer.eval.benchmarks": ["ArcEasy-STLMSubset"]})
    assert older.config.evaluate.tasks == ("winogrande", "stlm_eval_arc_easy")


@changes("trainer.eval.benchmarks")
def test_newer_benchmarks(make: Make) -> None:
    made = make({"trainer.eval.benchmarks": ["RACEMiddle", "TruthfulQA-M2"], "trainer.eval_interval": 3})
    assert made.config.evaluate.tasks == ("race_middle", "truthfulqa_mc2")
    assert made.config.evaluate.tasks_every == 3


@changes(
    "trainer.eval.evaluator",
    *(f"trainer.eval.evaluators[].{name}" for name in ("evaluator", "benchmarks", "num_samples", "max_eval_samples")),
)
def test_evaluators(make: Make) -> None:
    several = [
        {"evaluator": "mcq", "num_samples": 10, "benchmarks": ["winograd", "ArcEasy-Subset"]},
        {"evaluator": "ft_qa", "benchmarks": ["arc"], "max_train_samples": 9, "max_eval_samples": 5},
        {"evaluator": "prog"},
        {"evaluator": "glue", "max_eval_samples": 7},
    ]
    for change in ({"trainer.eval.evaluators": several}, {"trainer.eval": several}):
        made = make(change)
        tasks = ("winogrande:10", "arc_easy:100", "arc_easy", "tinystories_progress", "glue:7")
        assert made.config.evaluate.tasks == tasks
        assert any("ft_qa fits a classifier" in note for note in made.loaded.notes)
    alone = make({"trainer.eval.evaluator": "glue", "trainer.eval.benchmarks": ["glue"]})
    assert alone.config.evaluate.tasks == ("glue",)


@changes("trainer.eval.val_loss_iters")
def test_val_loss_iters(make: Make) -> None:
    alone = make({"trainer.eval.val_loss_iters": 3}, without=["trainer.eval.dataset_loss_eval_iters"])
    assert alone.config.evaluate.samples == 3 * alone.config.batch.micro_batch_size
    both = make(
        {"trainer.eval.val_loss_iters": 3, "trainer.eval_iters": 2}, without=["trainer.eval.dataset_loss_eval_iters"]
    )
    assert both.config.evaluate.samples == 2 * both.config.batch.micro_batch_size
    assert any("reads 2 micro-batches, as eval_iters says" in note for note in both.loaded.notes)


@changes("trainer.eval.text_generation_eval")
def test_text_generation(make: Make) -> None:
    assert make({"trainer.eval.text_generation_eval": False}).config.evaluate.text_generation is None
    made = make({"trainer.eval.text_generation_eval": True, "trainer.eval_interval": 2})
    assert any("errors_per_100_words" in note for note in made.loaded.notes)
    assert list(made.metrics("generation/distinct_1")) == [2, 4]
    newer = make({"trainer.eval.benchmarks": ["Text-Generation (full)"], "trainer.eval_interval": 2})
    assert newer.config.evaluate == made.config.evaluate


@changes("trainer.trainer_type")
def test_trainer_type(make: Make) -> None:
    assert make({"trainer.trainer_type": "mock_trainer"}).config.evaluate.only
    assert EXPERIMENT in refused(make, {"trainer.trainer_type": "cascade_trainer"})


@changes("trainer.eval.num_samples")
def test_num_samples(make: Make, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for samples, said in ((3, " of 3"), (1000, " of 5")):
        capfd.readouterr()
        changes = {"trainer.eval.mcq_benchmarks": ["copa"], "trainer.eval.num_samples": samples}
        assert make(changes | benchmark_files(place)).trained
        lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("  copa  acc ")]
        assert lines
        assert all(line.endswith(said) for line in lines)


@changes("trainer.eval.text_modeling_eval")
def test_text_modeling(make: Make) -> None:
    assert make({"trainer.eval.text_modeling_eval": False}).metrics("text/bits_per_byte") == {}
    made = make({"trainer.eval.text_modeling_eval": True})
    assert max(made.metrics("text/bits_per_byte")) == 4
    assert made.config == make({}, without=["trainer.eval.text_modeling_eval"]).config


@changes("trainer.checkpoint_interval")
def test_checkpoints(make: Make) -> None:
    assert make({"trainer.checkpoint_interval": 1}).checkpoints == [1, 2, 3, 4]
    assert make({"trainer.checkpoint_interval": 1e9}).checkpoints == [4]


@changes("trainer.log_interval")
def test_logging_interval(make: Make) -> None:
    assert make({"trainer.log_interval": 2}).config.train.log_every == 2
    assert make().config.train.log_every == 10


@changes("trainer.lr_scheduler.name")
def test_scheduler(make: Make) -> None:
    assert rates(make({"trainer.lr_scheduler": "constant", "trainer.warmup_iters": 2})) == [6e-4] * 4
    assert rates(make({"trainer.lr_scheduler": "cosine"})) == rates(make())
    assert "did you mean 'cosine'" in refused(make, {"trainer.lr_scheduler.name": "cosin"})


@changes("trainer.lr_scheduler.params")
def test_scheduler_params(make: Make) -> None:
    made = make({"trainer.lr_scheduler": {"name": "ExponentialLR", "params": {"gamma": 0.5}}})
    assert rates(made) == pytest.approx([6e-4, 3e-4, 1.5e-4, 7.5e-5])
    assert "for PyTorch's schedulers" in refused(make, {"trainer.lr_scheduler.params": {"gamma": 0.5}})


@changes("trainer.loss_fn.name")
def test_loss_fn(make: Make) -> None:
    masked, mask = make({"trainer.loss_fn": "next_token_mlm"}), 300
    assert shapes(masked)["embedding.weight"] == (301, 16)
    assert own(masked)(torch.tensor([[mask, 5]])).shape[-1] == 300
    batch, plain = masked.batch(), make().batch()
    hidden = batch.inputs == mask
    assert hidden.any()
    assert (batch.targets[:, :-1][hidden[:, 1:]] == plain.inputs[:, 1:][hidden[:, 1:]]).all()
    assert batch.valid < plain.valid / 3


@changes("trainer.dataloader.name")
def test_dataloader(make: Make) -> None:
    """mlm: the cross-entropy of hidden tokens, each at its own position."""
    assert EXPERIMENT in refused(make, {"trainer.dataloader": "byte_patch"})
    masked, mask = make({"trainer.dataloader": "mlm"}), 300
    assert shapes(masked)["embedding.weight"] == (301, 16)
    batch, plain = masked.batch(), make().batch()
    hidden, lossy = batch.inputs == mask, batch.targets >= 0
    assert hidden.any()
    assert (lossy | ~hidden).all()
    assert (batch.targets[lossy] == plain.inputs[lossy]).all()
    assert batch.valid < plain.valid / 3
    assert "mlm goes with loss_fn: cross_entropy" in refused(
        make, {"trainer.dataloader": "mlm", "trainer.loss_fn": "next_token_mlm"}
    )


DROPOUT = (
    *("dropout_type", "dropout", "start_dropout_p", "end_dropout_p", "start_iter", "end_iter"),
    *("dropout_trough", "dropout_peak", "num_iterations", "num_cycles"),
)


@changes(*(f"trainer.dropout_scheduler.{name}" for name in DROPOUT))
def test_dropout_schedule(make: Make) -> None:
    def kept(**keys: Any) -> list[float]:
        from quintet.train.schedule import dropout_rate

        config = make({f"trainer.dropout_scheduler.{name}": value for name, value in keys.items()}).config
        found = [dropout_rate(config.dropout_schedule, step, 4) for step in range(1, 5)]
        assert None not in found
        return found  # pyright: ignore[reportReturnType]

    assert kept(dropout_type="constant", dropout=0.1) == [0.1] * 4
    line = kept(dropout_type="linear", start_dropout_p=0.0, end_dropout_p=0.2, start_iter=1, end_iter=3)
    assert line == pytest.approx([0.0, 0.0, 0.1, 0.2])
    whole = kept(dropout_type="linear", start_dropout_p=0.0, end_dropout_p=1.0, start_iter=1, end_iter=3)
    assert whole == [0.0, 0.0, 0.5, 1.0]  # its steps count from 0, and the rate is set before the step
    up = kept(dropout_type="triangle", dropout_trough=0.1, dropout_peak=0.3, num_iterations=4, num_cycles=2)
    assert up == pytest.approx([0.1, 0.3, 0.1, 0.3])
    beside = make({f"trainer.dropout_scheduler.{name}": value for name, value in BESIDE.items()})
    schedule: Any = beside.config.dropout_schedule
    assert (schedule.kind, schedule.rate) == ("constant", 0.1)
    others = [note for note in beside.loaded.notes if "STLM does not read it with constant" in note]
    assert len(others) == len(BESIDE) - 2


BESIDE = {
    "dropout_type": "constant",
    "dropout": 0.1,
    "start_dropout_p": 0.2,
    "end_dropout_p": 0.4,
    "start_iter": 1,
    "end_iter": 3,
    "dropout_peak": 0.3,
}


@changes("trainer.optimizer.optimizer_name")
def test_optimizer_name(make: Make) -> None:
    def decays(name: str) -> list[int]:
        groups = make({"trainer.optimizer.optimizer_name": name}).optimizer.param_groups
        return sorted(len(group["params"]) for group in groups if group["weight_decay"])

    everything = len(shapes(make()))
    assert decays("AdamW") == decays("adamW") == [everything]
    assert decays("nanoGPTadamW") == [everything - 5]  # the gains of five norms
    sgd = make({"trainer.optimizer.optimizer_name": "sgd"}).optimizer
    assert isinstance(sgd, torch.optim.SGD)
    assert "found 'Sopa'" in refused(make, {"trainer.optimizer.optimizer_name": "Sopa"})


@changes("trainer.optimizer.params")
def test_optimizer_params(make: Make) -> None:
    params = {"lr": 0.25, "momentum": 0.5, "nesterov": True}
    group = make({"trainer.optimizer": {"name": "SGD", "params": params}}).optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.5, True)
    assert "put it into them" in refused(make, {"trainer.optimizer": {"name": "SGD", "params": params, "lr": 1.0}})


@each_changes(
    "value read",
    ("trainer.optimizer.weight_decay", 0.3, lambda group: group["weight_decay"]),
    ("trainer.optimizer.beta1", 0.8, lambda group: group["betas"][0]),
    ("trainer.optimizer.beta2", 0.98, lambda group: group["betas"][1]),
)
def test_a_value_of_the_optimizer(make: Make, key: str, value: float, read: Callable[[dict[str, Any]], float]) -> None:
    assert {read(group) for group in make({key: value}).optimizer.param_groups} == {value}
    assert {read(group) for group in make().optimizer.param_groups} != {value}


@changes("trainer.optimizer.grad_clip")
def test_clip(make: Make) -> None:
    """Without a limit a step of SGD is the gradient; with one it is as long as the limit."""

    def step_length(limit: float) -> float:
        made = make(
            {
                "trainer.optimizer": {"name": "SGD", "params": {"lr": 1.0}, "grad_clip": limit},
                "trainer.lr_scheduler": "constant",
                "trainer.max_iters": 1,
            }
        )
        before = own(made).state_dict()
        with chdir(made.file.parent):
            after = train(made.config, Reporter(), peak_flops=PEAK).run.model.state_dict()
        return math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in before))

    assert step_length(0.01) == pytest.approx(0.01, rel=1e-3)
    assert step_length(0) > 0.1


@changes("trainer.eval.dataset_loss_eval_iters")
def test_samples(make: Make) -> None:
    assert make().config.evaluate.samples == 8
    made = make({"trainer.eval.dataset_loss_eval_iters": 3})
    assert made.config.evaluate.samples == 12
    other = make({"trainer.eval.dataset_loss_eval_iters": 1})
    assert made.metrics("validation/loss") != other.metrics("validation/loss")


@changes("general.logging.wandb_log")
def test_wandb_log(make: Make) -> None:
    logged = make({"general.logging.wandb_log": True}).config.track
    assert [track.kind for track in logged] == ["wandb"]
    assert logged[0].arguments == {"project": "SuperTinyLanguageModels"}  # pyright: ignore
    assert make().config.track == ()


@each_changes(
    "argument",
    ("general.logging.wandb_project", "project"),
    ("general.logging.wandb_run_name", "name"),
    ("general.logging.group_name", "group"),
)
def test_an_argument_of_wandb(make: Make, key: str, argument: str) -> None:
    logged = make({"general.logging.wandb_log": True, key: "mine"}).config.track[0]
    assert logged.arguments[argument] == "mine"  # pyright: ignore


@changes("general.logging.wandb_run_name")
def test_run_name(make: Make) -> None:
    made = make({"general.logging.wandb_run_name": 'NonVocab: 1M / "tied"'})
    assert made.trained.name == "NonVocab-1M-tied"


@changes("general.paths.output_dir")
def test_output_dir(make: Make) -> None:
    made = make({"general.paths.output_dir": "outputs"})
    assert made.trained == made.file.parent / "outputs" / made.config.name
    assert (made.trained / "metrics.jsonl").is_file()


@changes("general.paths.data_dir")
def test_data_dir(make: Make) -> None:
    made = make({"general.paths.data_dir": "tokens"}, without=["quintet.data"])
    assert made.run.data.epoch_samples
    assert (made.file.parent / "tokens/stores").is_dir()


@changes("general.paths.checkpoint_dir")
def test_checkpoint_dir(make: Make) -> None:
    made = make({"general.paths.checkpoint_dir": "kept", "trainer.checkpoint_interval": 2})
    assert made.checkpoints == [2, 4]
    there = made.file.parent / "kept" / made.config.name
    assert (made.trained / "checkpoints").resolve() == there.resolve()
    assert len(list(there.iterdir())) >= 2


@changes("general.seed")
def test_seed(make: Make) -> None:
    first, again, different = (own(make({"general.seed": number})).embedding.weight for number in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, different)


@changes("general.device")
def test_device(make: Make) -> None:
    without = ["quintet.train.device"]
    assert make({"general.device": "cpu"}, without=without).run.compute.device.type == "cpu"
    assert make({"general.device": "cuda:0"}, without=without).config.train.device == "cuda"
    assert make({}, without=without).config.train.device == "auto"
    assert "CUDA_VISIBLE_DEVICES=1" in refused(make, {"general.device": "cuda:1"})


BYTES = {"model.embedding_model_type": "byte_level", "model.lm_head_type": "byte_level"}


@changes("model.model_shell_type")
def test_byte_shell(make: Make) -> None:
    assert EXPERIMENT in refused(make, {"model.model_shell_type": "byte_autoencoder_shell"})
    for shell, weight in (("standard", 0.0), ("byte_shell", 1.0)):
        assert own(make(BYTES | {"model.model_shell_type": shell})).head.reconstruction == weight


@changes("model.byte_context_window", "model.byte_embedding_dim")
def test_byte_sizes(make: Make) -> None:
    made = make(BYTES | {"model.byte_context_window": 7, "model.byte_embedding_dim": 24})
    for end in ("embedding", "head"):
        assert shapes(made)[f"{end}.position.weight"] == (7, 24)
    assert own(made).embedding.spelling.symbols.shape == (300, 7)


@each_changes(
    "value name expected",
    ("model.hidden_dim", 32, "embedding.weight", (300, 32)),
    ("model.ffn.ffn_dim", 515, "blocks.0.feedforward.up.weight", (515, 16)),
)
def test_a_size(make: Make, key: str, value: int, name: str, expected: tuple[int, ...]) -> None:
    assert shapes(make({key: value}))[name] == expected


@each_changes(
    "expected",
    ("model.ffn.bias", {"feedforward.up.bias", "feedforward.down.bias"}),
    ("model.attn.bias", {"attention.qkv.bias", "attention.output.bias"}),
)
def test_biases(make: Make, key: str, expected: set[str]) -> None:
    assert {name.split(".", 1)[-1] for name in only_in(make({key: True}), make())} == expected


@each_changes(
    "changed refusal",
    (
        "model.byte_vocab_size",
        BYTES | {"model.byte_vocab_size": 300},
        "single bytes, and these and two marks are 258",
    ),
    ("trainer.datasampling.name", {"trainer.datasampling": "sorted"}, "must be one of standard"),
)
def test_one_value_alone(make: Make, key: str, changed: dict[str, Any], refusal: str) -> None:
    assert refusal in refused(make, changed)


@changes("model.attn.head_dim")
def test_head_dim(make: Make) -> None:
    assert make({"model.attn.head_dim": 6}).config.model.attention.head_dim == 6  # pyright: ignore


@changes("model.num_layers")
def test_num_layers(make: Make) -> None:
    assert len(own(make({"model.num_layers": 3})).blocks) == 3


@changes("model.context_window")
def test_context_window(make: Make) -> None:
    assert make({"model.context_window": 32}).batch().inputs.shape == (4, 32)


@changes("model.tokenizer_num_reserved_tokens")
def test_tokenizer_num_reserved_tokens(make: Make) -> None:
    assert [
        (shapes(made)["embedding.weight"][0], made.run.tokenizer.vocab_size)
        for made in (make({"model.tokenizer_num_reserved_tokens": 20}), make({"model.vocab_size": 280}))
    ] == [(300, 280), (280, 280)]


@changes("model.lm_head_bias")
def test_lm_head_bias(make: Make) -> None:
    assert only_in(make({"model.lm_head_bias": True}), make()) == {"head.bias"}


@changes("trainer.batch_size")
def test_batch_size(make: Make) -> None:
    assert make({"trainer.batch_size": 6}).batch().inputs.shape == (6, 16)


@changes("trainer.gradient_accumulation_steps")
def test_gradient_accumulation_steps(make: Make) -> None:
    assert make({"trainer.gradient_accumulation_steps": 3}).batch().inputs.shape == (12, 16)


@changes("trainer.max_iters")
def test_max_iters(make: Make) -> None:
    assert make({"trainer.max_iters": 7}).run.steps == 7


@changes("trainer.optimizer.lr")
def test_lr(make: Make) -> None:
    assert rates(make({"trainer.optimizer.lr": 3e-3}))[0] == 3e-3


@changes("trainer.optimizer.min_lr")
def test_min_lr(make: Make) -> None:
    assert rates(make({"trainer.optimizer.min_lr": 1e-4, "trainer.lr_decay_iters": 2}))[-2:] == pytest.approx(
        [1e-4] * 2
    )


@changes("general.max_num_cores")
def test_max_num_cores(make: Make) -> None:
    assert make({"general.max_num_cores": 3}).config.data.processes == 3


@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        *(
            (verb, {"model.context_window": 100000}, "trainer.dataset: jsonl")
            for verb in ("prepare", "show-batch", "train")
        ),
        ("train", {"quintet.train.device": "mps"}, "quintet.train.device: this machine has no mps device"),
    ],
)
def test_every_verb_speaks_of_the_keys_of_the_file(
    verb: str, changes: dict[str, Any], message: str, said: Said
) -> None:
    assert [line for line in said(verb, changes) if line.startswith(message)]
