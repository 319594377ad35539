"""Checkpoints of the families as they are found: older names, other forms, wrong and missing values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.hf.test_families import (
    CONTEXT,
    FAMILIES,
    GPT2,
    SIZES,
    UNCAPPED,
    VOCAB,
    assert_equal_to_1e5,
    imported,
    made,
    prompt,
    rope,
    start,
    their_logits,
)
from torch import Tensor

from quintet.config.model import TransformerConfig
from quintet.errors import UserError
from quintet.model.hf.files import find_checkpoint, read_config
from quintet.model.hf.settings import model_section

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("gpt_neox", {}, "model_type: gpt_neox is none of those"),
        ("gemma2", SIZES, "attn_logit_softcapping: 50.0 (only None can be expressed)"),
        ("gemma2", SIZES | UNCAPPED, "layer_types: full_attention and sliding_attention in one model"),
        ("olmo", SIZES | {"clip_qkv": 8.0}, "clip_qkv: 8.0"),
        ("phi", SIZES | {"qk_layernorm": True}, "qk_layernorm: True"),
        ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: True"),
        ("llama", SIZES | {"hidden_act": "mish"}, "hidden_act: mish is none of gelu, "),
        ("llama", SIZES | rope("dynamic", factor=2.0), "rope_parameters: rope_type dynamic"),
        ("llama", SIZES | rope("yarn", factor=2.0, mscale=0.7, mscale_all_dim=0.8), "rope_parameters: rope_type yarn"),
        ("llama", SIZES | {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ],
)
def test_what_no_part_expresses_is_refused_by_name(kind: str, settings: dict[str, Any], message: str) -> None:
    values = transformers.AutoConfig.for_model(kind, **settings).to_dict()
    with pytest.raises(UserError) as refused:
        model_section(values, "it")
    assert any(problem.startswith(f"it: {message}") for problem in refused.value.problems), refused.value.problems


WRONG: tuple[Any, ...] = (None, "x", "", [], ["x", None], {}, -1, 0, 0.5, True, float("nan"), 10**400)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_wrong_or_missing_value_is_refused_by_name_or_read(name: str) -> None:
    kind, settings = FAMILIES[name]
    right = transformers.AutoConfig.for_model(kind, **settings).to_dict()
    inner = right.get("rope_parameters") or {}
    for key in ("", *inner):
        for path in [key] if key else right:
            for wrong in (*WRONG, "missing"):
                values = {**right, "rope_parameters": dict(inner)} if inner else dict(right)
                place = values["rope_parameters"] if key else values
                if wrong == "missing":
                    del place[path]
                else:
                    place[path] = wrong
                told: tuple[str, ...] = ()
                try:
                    TransformerConfig.model_validate(model_section(values, "it"))
                except UserError as error:
                    told = error.problems
                assert all(problem.startswith("it: ") for problem in told), (path, wrong)


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


@torch.no_grad()
def test_older_names_of_rotary_settings_are_read(tmp_path: Path) -> None:
    theirs = made(*FAMILIES["llama linear"], tmp_path)

    def older(values: dict[str, Any]) -> None:
        new = values.pop("rope_parameters")
        values["rope_theta"] = new["rope_theta"]
        values["rope_scaling"] = {"type": "linear", "factor": new["factor"]}

    rewrite(tmp_path / "config.json", older)
    ids = torch.tensor([prompt(0, CONTEXT)])
    assert_equal_to_1e5(imported(tmp_path)(ids), their_logits(theirs, ids))


@torch.no_grad()
@pytest.mark.parametrize("form", ["sharded", "pickled", "without its head", "with constants", "bf16"])
def test_every_form_of_a_checkpoint_is_read(form: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = made("gpt2", GPT2, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    if form == "sharded":
        file.unlink()
        theirs.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    elif form == "pickled":
        file.unlink()
        torch.save(state, tmp_path / "pytorch_model.bin")
    elif form == "without its head":
        save_file({name.removeprefix("transformer."): value for name, value in state.items()}, file)
    elif form == "with constants":
        save_file(
            state
            | {
                "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
                "lm_head.weight": state["transformer.wte.weight"].clone(),
            },
            file,
        )
    else:
        theirs = theirs.to(torch.bfloat16)
        theirs.save_pretrained(tmp_path)
        theirs = theirs.float()
    ids = torch.tensor([prompt(0, CONTEXT)])
    assert_equal_to_1e5(imported(tmp_path)(ids), their_logits(theirs, ids))


def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made(*FAMILIES["llama"], tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)

    def refusal(tensors: dict[str, Tensor]) -> str:
        save_file(tensors, file)
        with pytest.raises(UserError) as refused:
            imported(tmp_path)
        return str(refused.value)

    lost = "model.layers.1.mlp.up_proj.weight"
    assert f"lacks the tensor {lost}" in refusal({name: value for name, value in state.items() if name != lost})
    assert "holds extra.weight, for which llama has no place" in refusal(state | {"extra.weight": torch.ones(2)})
    name = "model.layers.0.self_attn.k_proj.weight"
    assert "have 32, 8, 16 rows" in refusal(state | {name: state[name][:8].clone()})
    name = "model.layers.0.mlp.up_proj.weight"
    assert f"{name} has the shape [3, 32], not [56, 32]" in refusal(state | {name: torch.ones(3, 32)})
    file.write_bytes(b"\0" * 50)
    with pytest.raises(UserError, match=r"model.safetensors: is damaged"):
        imported(tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"holds neither model.safetensors nor pytorch_model.bin"):
        imported(tmp_path)


def test_another_architecture_is_refused_key_by_key(tmp_path: Path) -> None:
    made(*FAMILIES["llama"], tmp_path)
    with pytest.raises(UserError) as refused:
        start(tmp_path, {"layers": 4, "feedforward": {"bias": True}, "norm": {"kind": "layer"}})
    problems = "\n".join(refused.value.problems)
    assert "model.layers: 4, but" in problems
    assert "has 3" in problems
    assert "model.feedforward.bias: True" in problems
    assert "model.attention.norm.kind: layer" in problems
    assert "quintet import" in refused.value.problems[-1]


def test_what_may_be_trained_into_another_is_said_and_not_refused(tmp_path: Path) -> None:
    made(*FAMILIES["llama"], tmp_path)
    changed = {"attention": {"mask": "causal_document"}, "position": {"scaling": {"kind": "linear", "factor": 2}}}
    notes = start(tmp_path, changed).notes
    assert any(note.startswith("model.attention.mask: causal_document;") for note in notes)
    assert any(note.startswith("model.position.scaling: ") for note in notes)
    assert len(notes) == 2


def test_rows_that_a_checkpoint_lacks_start_as_the_mean_of_the_others(tmp_path: Path) -> None:
    made(*FAMILIES["gpt2"], tmp_path)
    before, after = start(tmp_path, {}).weights, start(tmp_path, {}, rows=VOCAB + 3, context=20).weights
    torch.testing.assert_close(after["embedding.weight"][:VOCAB], before["embedding.weight"])
    mean = before["embedding.weight"].mean(0)
    torch.testing.assert_close(after["embedding.weight"][VOCAB:], mean.expand(3, -1))
    torch.testing.assert_close(after["position.weight"], before["position.weight"][:20])
    with pytest.raises(UserError, match=r"model.context_length: 49 positions, but .* has learned 48; lower it"):
        start(tmp_path, {}, context=CONTEXT + 1)
    with pytest.raises(UserError, match=r"model.vocab_size: 60 rows, but .* has 61; set it to 61"):
        start(tmp_path, {}, rows=VOCAB - 1)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"has no config.json"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nothing-like-it"}')
    with pytest.raises(UserError, match=r"config.json: transformers cannot read it"):
        read_config(tmp_path)
    with pytest.raises(UserError, match=r"is no folder and can be no name on the hub"):
        find_checkpoint("/no/such/folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"nobody/nothing: is no folder here and cannot be had from the hub"):
        find_checkpoint("nobody/nothing")
