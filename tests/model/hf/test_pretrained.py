"""Models of the transformers library, against the library itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.hf.small_models import EVERY, FAMILIES, LENGTH, PACKING, ROWS, SHAPE, VOCAB, gradients, library, texts
from tests.model.hf.small_models import _few_trials as _few_trials  # a fixture
from tests.model.hf.small_models import build as build  # a fixture
from tests.model.hf.small_models import checkpoints as checkpoints  # a fixture
from torch.utils.flop_counter import FlopCounterMode

from quintet.config.generation import GenerationSettings
from quintet.config.model import HuggingFaceConfig
from quintet.errors import UserError
from quintet.model import build_model
from quintet.model.generate import beam_search, generate
from quintet.model.hf.count import count_pretrained, pretrained_flops
from quintet.model.hf.pretrained import PretrainedModel
from quintet.train.cross_entropy import cross_entropy, linear_cross_entropy

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")


@pytest.mark.parametrize("name", EVERY)
def test_logits_are_those_of_the_library(build, checkpoints: Path, name: str) -> None:
    model, ids = build(name).eval(), texts()
    torch.testing.assert_close(model(ids), library(checkpoints, name)(ids).logits[..., :VOCAB])


@pytest.mark.parametrize(("name", "linear"), [("llama", True), ("gpt2", True), ("gemma2", False), ("granite", False)])
def test_a_head_that_is_more_than_a_matrix_is_found(build, name: str, linear: bool) -> None:
    model = build(name)
    assert (model.head_weight is not None) == linear
    assert model.head_bias is None
    rescaled = build("gemma2", config={"final_logit_softcapping": None})
    assert rescaled.head_weight is not None


def test_a_head_that_is_more_than_a_matrix_is_found_where_its_logits_are_small(checkpoints: Path) -> None:
    config = HuggingFaceConfig(kind="huggingface", name_or_path=str(checkpoints / "gemma2"), pretrained=False)
    assert build_model(config, VOCAB, LENGTH, seed=0).head_weight is None


@pytest.mark.parametrize("name", EVERY)
def test_the_loss_is_that_of_the_library(build, checkpoints: Path, name: str) -> None:
    model, ids = build(name).eval(), texts()
    reference = library(checkpoints, name)
    # Rows that no id of the tokenizer uses are in the library's softmax and not in Quintet's.
    biggest = torch.finfo(torch.float32).min
    logits = reference(ids).logits
    logits[..., VOCAB:] = biggest
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    hidden = model.hidden(ids[:, :-1])
    if model.head_weight is None:
        found = cross_entropy(model.logits(hidden), ids[:, 1:])
    else:
        found = linear_cross_entropy(hidden, model.head_weight, model.head_bias, ids[:, 1:], ids=VOCAB)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", EVERY)
def test_greedy_texts_are_those_of_the_library(build, checkpoints: Path, name: str) -> None:
    model, reference = build(name, context_length=64), library(checkpoints, name)
    prompts = [texts(1, length, seed=length)[0].tolist() for length in (9, 3, 14)]
    settings = GenerationSettings(max_tokens=9, temperature=0)
    found = list(zip(*generate(model, prompts, settings, allowed_ids=VOCAB), strict=True))
    assert found == list(zip(*generate(model, prompts, settings, allowed_ids=VOCAB, static=True), strict=True))
    assert found[1:2] == list(zip(*generate(model, prompts[1:2], settings, allowed_ids=VOCAB), strict=True))
    for prompt, tokens in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        allowed = transformers.LogitsProcessorList([transformers.SuppressTokensLogitsProcessor(range(VOCAB, ROWS))])
        whole = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=9,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=allowed,
        )
        assert whole[0, len(prompt) :].tolist() == list(tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_and_a_static_cache_change_nothing(build, name: str) -> None:
    model, ids = build(name).eval(), texts(2, 12)
    alone = model(ids[:1, 4:])
    for static in (False, True):
        cache = model.start_cache(2, 16, padding=[4, 0], static=static)
        parts = [model.hidden(part, cache=cache) for part in ids.split([7, 1, 4], dim=1)]
        assert cache.length == 12
        found = model.logits(torch.cat(parts, dim=1))
        torch.testing.assert_close(found[:1, 4:], alone, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[1:], model(ids[1:]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_static_cache_writes_the_same_in_bf16(build, name: str) -> None:
    settings = GenerationSettings(max_tokens=6, temperature=0)
    model = build(name, context_length=64)
    with torch.autocast("cpu", torch.bfloat16):
        found = [list(generate(model, [[1, 2], [3, 4, 5]], settings, static=static)) for static in (False, True)]
    assert found[0] == found[1]


def test_one_compiled_step_serves_all_tokens(build, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def backend(graph: Any, inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=backend, **options))
    model, settings = build("gemma2", context_length=64), GenerationSettings(max_tokens=14, temperature=0)
    prompts = [[1, 2], [3, 4, 5]]
    found = list(generate(model, prompts, settings, static=True, compile=True))
    assert found == list(generate(model, prompts, settings))
    assert 1 <= len(graphs) <= 2


@pytest.mark.parametrize("static", [False, True])
def test_rows_of_a_cache_can_be_exchanged(build, static: bool) -> None:
    model, ids = build("llama").eval(), texts(2, 10)
    cache = model.start_cache(2, 16, padding=[3, 0], static=static)
    model.hidden(ids[:, :6], cache=cache)
    cache.select(torch.tensor([1, 0]))
    found = model.logits(model.hidden(ids.flip(0)[:, 6:], cache=cache))
    torch.testing.assert_close(found[0], model(ids[1:])[0, 6:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], model(ids[:1, 3:])[0, 3:], atol=1e-4, rtol=1e-4)


def test_a_search_with_one_beam_is_greedy(build) -> None:
    model, prompt = build("llama", context_length=64), texts(1, 5)[0].tolist()
    greedy = generate(model, [prompt], GenerationSettings(max_tokens=6, temperature=0))
    assert beam_search(model, prompt, 1, 6) == [row[0] for row in greedy]
    assert len(beam_search(model, prompt, 3, 6)) == 6


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "eager") for name in PACKING] + [(name, "sdpa") for name in PACKING if name != "gemma2"],
)
def test_packed_documents_have_the_logits_and_gradients_that_they_have_alone(build, name: str, backend: str) -> None:
    model, ids = build(name, documents=True, attention_backend=backend, dropout=0.0), texts()
    cuts = [[1, 9, 14], [12, 12]]
    documents = torch.stack([torch.repeat_interleave(torch.arange(len(c)), torch.tensor(c)) for c in cuts])
    weights = torch.randn(2, LENGTH, VOCAB, generator=torch.Generator().manual_seed(1))
    packed = model(ids, documents=documents)
    (packed * weights).sum().backward()
    together = gradients(model)
    model.zero_grad(set_to_none=True)
    for row, lengths in enumerate(cuts):
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            alone = model(ids[row : row + 1, part])
            torch.testing.assert_close(packed[row, part], alone[0], atol=1e-4, rtol=1e-4)
            (alone[0] * weights[row, part]).sum().backward()
            start += length
    separate = gradients(model)
    assert together.keys() == separate.keys()
    for parameter, gradient in together.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, separate[parameter], atol=1e-4 * scale, rtol=1e-3)
    assert not torch.allclose(packed, model(ids), atol=0.1)  # the test would see documents that see one another


@pytest.mark.parametrize("static", [False, True])
def test_texts_are_continued_as_if_what_precedes_their_document_were_not_there(build, static: bool) -> None:
    model, end = build("llama", documents=True, context_length=64), 256
    last = [[5, 6, 7], [9, end, 8]]
    prompts = [[1, 2, end, *last[0]], [3, end, 4, end, *last[1]]]
    settings = GenerationSettings(max_tokens=6, temperature=0)
    found = list(generate(model, prompts, settings, preceding=[3, 4], static=static))
    assert found == list(generate(model, last, settings, static=static))
    # Rows that are exchanged take along where their document begins.
    cache = model.eval().start_cache(2, 16, static=static)
    model.hidden(torch.tensor([[1, 2, 3], [7, 8, 9]]), documents=torch.tensor([[0, 0, 1], [0, 1, 2]]), cache=cache)
    cache.select(torch.tensor([1, 0]))
    found = model.logits(model.hidden(torch.tensor([[4], [5]]), documents=torch.tensor([[2], [2]]), cache=cache))
    torch.testing.assert_close(found[0], model(torch.tensor([[9, 4]]))[0, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], model(torch.tensor([[5]]))[0], atol=1e-4, rtol=1e-4)
    # A document that ends in the middle of what is written is forgotten as well.
    cache = model.eval().start_cache(1, 16, static=static)
    model.hidden(torch.tensor([[1, 2, 3]]), documents=torch.tensor([[0, 0, 0]]), cache=cache)
    one = model.logits(model.hidden(torch.tensor([[4]]), documents=torch.tensor([[1]]), cache=cache))
    two = model.logits(model.hidden(torch.tensor([[5]]), documents=torch.tensor([[1]]), cache=cache))
    torch.testing.assert_close(torch.cat([one, two], 1), model(torch.tensor([[4, 5]])), atol=1e-4, rtol=1e-4)


def test_weights_are_fp32_whatever_the_type_of_the_checkpoint(build, checkpoints: Path) -> None:
    library(checkpoints, "llama").to(torch.bfloat16).save_pretrained(checkpoints / "narrow")
    model = build("narrow")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weight = library(checkpoints, "llama").lm_head.weight
    assert model.head_weight is not None
    assert torch.equal(model.head_weight, weight.bfloat16().float())


def test_the_revision_is_what_is_fetched(build, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    for kind in (transformers.AutoConfig, transformers.AutoModelForCausalLM):
        real = kind.from_pretrained
        monkeypatch.setattr(kind, "from_pretrained", lambda *a, real=real, **k: asked.append(k) or real(*a, **k))
    build("llama", revision="v2")
    assert len(asked) == 2
    assert [named["revision"] for named in asked] == ["v2", "v2"]


def test_keys_of_the_configuration_replace_those_of_the_checkpoint(build) -> None:
    model, ids = build("llama", config={"rms_norm_eps": 0.5}).eval(), texts()
    assert model.causal.config.rms_norm_eps == 0.5
    assert not torch.allclose(model(ids), build("llama").eval()(ids), atol=1e-2)
    assert len(build("llama", pretrained=False, config={"num_hidden_layers": 1}).blocks) == 1


@pytest.mark.parametrize("keys", [{}, {"lora": {"rank": 3}}, {"freeze": "core"}])
@pytest.mark.parametrize("name", EVERY)
def test_parameters_are_counted_without_weights(build, name: str, keys: dict[str, Any]) -> None:
    model = build(name, **keys)
    count = count_pretrained(model.config, VOCAB, LENGTH)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert count.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count.embedding == ROWS * 32 + (64 * 32 if name == "gpt2" else 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_flops_are_those_of_the_matrix_products(build, name: str) -> None:
    model = build(name, attention_backend="eager")
    flops = pretrained_flops(model.config, VOCAB, LENGTH, LENGTH)
    with FlopCounterMode(display=False) as forward:
        loss = model.causal(texts(1)).logits.sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert flops.forward * LENGTH == forward.get_total_flops()
    assert flops.backward * LENGTH == backward.get_total_flops()


def test_frozen_weights_cost_no_gradient_of_their_own(build) -> None:
    whole = pretrained_flops(build("llama").config, VOCAB, LENGTH, LENGTH)
    frozen = pretrained_flops(build("llama", freeze="core").config, VOCAB, LENGTH, LENGTH)
    core = 2 * (32 * (32 + 2 * 16 + 32) + 3 * 32 * 48)
    assert (whole.forward, whole.backward - frozen.backward) == (frozen.forward, 2 * core)


def test_of_the_experts_those_count_that_a_token_is_sent_to(build) -> None:
    flops = pretrained_flops(build("mixtral").config, VOCAB, LENGTH, LENGTH)
    layer = 32 * (32 + 2 * 16 + 32) + 2 * 3 * 32 * 48 + 4 * 32
    assert flops.forward == 2 * (2 * layer + ROWS * 32) + 2 * 4 * 32 * LENGTH


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("no/such/folder", {}, "model.name_or_path: .*no/such/folder does not exist; give a folder"),
    (
        "llama",
        {"config": {"hiden_size": 64}},
        "model.config.hiden_size: a llama model has no such key; .* hidden_size?",
    ),
    ("llama", {"config": {"hidden_size": 64}}, r"lm_head.weight has the shape \[264, 32\], not \[264, 64\]"),
    ("llama", {"config": {"num_attention_heads": 5}}, "model.config: .* cannot be built"),
    ("llama", {"config": {"num_hidden_layers": 3}}, "lacks 9 of the model's weights .*would start from random numbers"),
    ("llama", {"lora": {"targets": ["q_prj"]}}, "model.lora.targets: no module is called q_prj; there are .*q_proj"),
    ("llama", {"lora": {"targets": ["norm"]}}, "model.lora.targets: "),
    ("gpt2", {"lora": {"targets": ["wte"]}}, "model.lora.targets: embedding and head of this model are one matrix"),
    ("llama", {"attention_backend": "flash_attention_2"}, "model.attention_backend: flash_attention_2 cannot be used"),
    ("bert", {}, "sees the tokens that it is to predict, as encoders do.*is_decoder=true"),
    ("t5", {}, "model.name_or_path: .* is not a causal language model of the transformers library"),
    ("empty", {}, "model.name_or_path: .*empty holds no config.json"),
]


@pytest.mark.parametrize(("name", "keys", "message"), REFUSALS)
def test_what_cannot_be_built_is_refused_in_one_line(checkpoints: Path, name: str, keys, message: str) -> None:
    (checkpoints / "empty").mkdir(exist_ok=True)
    if name == "bert" and not (checkpoints / name).exists():
        small = {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
        transformers.BertLMHeadModel(transformers.BertConfig(**small)).save_pretrained(checkpoints / name)
    if name == "t5":
        small = transformers.T5Config(d_model=32, d_ff=32, num_layers=1, num_heads=1, vocab_size=ROWS)
        transformers.T5ForConditionalGeneration(small).save_pretrained(checkpoints / name)
    config = HuggingFaceConfig(kind="huggingface", name_or_path=str(checkpoints / name), **keys)
    with pytest.raises(UserError, match=message) as refused:
        build_model(config, VOCAB, LENGTH, seed=0)
    assert "\n" not in str(refused.value)


def test_flex_attention_is_refused_where_it_cannot_train(build) -> None:
    model = build("llama", attention_backend="flex_attention")
    with pytest.raises(UserError, match=r"model\.attention_backend: flex_attention cannot train on a CPU"):
        model(texts())


def test_flash_attention_gets_documents_in_one_row(build, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention finds documents by positions in a batch of one row; here another kernel gets its arguments."""
    model, ids = build("llama", documents=True).eval(), texts()
    documents = (torch.arange(LENGTH) >= 9).long().expand(2, -1)
    expected = model(ids, documents=documents)
    shapes: list[torch.Size] = []
    model.causal.base_model.register_forward_pre_hook(
        lambda module, _, named: shapes.append(named["input_ids"].shape), with_kwargs=True
    )
    monkeypatch.setattr(PretrainedModel, "_attention", "flash_attention_2")
    torch.testing.assert_close(model(ids, documents=documents), expected)
    assert shapes == [(1, 2 * LENGTH)]


def test_an_encoder_that_is_told_to_decode_is_accepted(checkpoints: Path) -> None:
    small = {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}
    transformers.BertLMHeadModel(transformers.BertConfig(**small)).save_pretrained(checkpoints / "bert")
    name = str(checkpoints / "bert")
    config = HuggingFaceConfig(kind="huggingface", name_or_path=name, config={"is_decoder": True})
    assert build_model(config, VOCAB, LENGTH, seed=0)(texts()).shape == (2, LENGTH, VOCAB)


def test_a_model_that_is_too_small_is_refused(checkpoints: Path) -> None:
    config = HuggingFaceConfig(kind="huggingface", name_or_path=str(checkpoints / "llama"))
    for refuse in (lambda *sizes: build_model(config, *sizes, seed=0), lambda *sizes: count_pretrained(config, *sizes)):
        with pytest.raises(UserError, match=f"tokenizer: its 300 ids are more than the {ROWS} rows"):
            refuse(300, LENGTH)
        with pytest.raises(UserError, match=r"model\.context_length: 65 tokens are more than the 64 positions"):
            refuse(VOCAB, 65)
    longer = config.model_copy(update={"config": {"max_position_embeddings": 65}})
    assert build_model(longer, VOCAB, 65, seed=0)(texts(1, 65)).shape == (1, 65, VOCAB)


def test_a_name_that_cannot_be_fetched_is_refused(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    config = HuggingFaceConfig(kind="huggingface", name_or_path="nobody/nothing")
    with pytest.raises(UserError, match=r"nobody/nothing is neither a folder nor a model that can be fetched"):
        build_model(config, VOCAB, LENGTH, seed=0)


def test_an_architecture_that_mixes_documents_is_refused(checkpoints: Path) -> None:
    config = transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=ROWS)
    transformers.BloomForCausalLM(config).save_pretrained(checkpoints / "bloom")
    name = str(checkpoints / "bloom")
    with pytest.raises(
        UserError, match=r"model\.documents: BloomForCausalLM has no way to keep packed documents apart"
    ):
        build_model(HuggingFaceConfig(kind="huggingface", name_or_path=name, documents=True), VOCAB, LENGTH, seed=0)
    model = build_model(HuggingFaceConfig(kind="huggingface", name_or_path=name), VOCAB, LENGTH, seed=0).eval()
    found = generate(model, [[1, 2, 3], [7]], GenerationSettings(max_tokens=4, temperature=0))
    alone = generate(model, [[7]], GenerationSettings(max_tokens=4, temperature=0))
    assert [row[1] for row in found] == [row[0] for row in alone]


@pytest.mark.parametrize(("missing", "keys"), [("transformers", {}), ("peft", {"lora": {}})])
def test_a_missing_extra_is_named(checkpoints: Path, monkeypatch, missing: str, keys: dict[str, Any]) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    config = HuggingFaceConfig(kind="huggingface", name_or_path=str(checkpoints / "llama"), **keys)
    with pytest.raises(
        UserError, match=re.escape(f"needs {missing}, which is not installed; pip install 'quintet[hf]'")
    ):
        build_model(config, VOCAB, LENGTH, seed=0)
