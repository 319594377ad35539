"""The files of a checkpoint that are read, and their content, against transformers' reading of the same folder."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quintet.config.model import HuggingFaceConfig, TransformerConfig
from quintet.errors import UserError
from quintet.model import build_model
from quintet.model.hf.count import count_pretrained
from quintet.model.hf.files import find_checkpoint, read_config
from quintet.model.hf.settings import model_section
from quintet.model.hf.weights import pretrained_weights

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

ROWS, LENGTH = 40, 32
SIZES: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": LENGTH,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
IDS = torch.arange(LENGTH)[None] * 7 % ROWS
Break = Callable[[Path], object]


def made(seed: int = 0, kind: str = "llama", **settings: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **SIZES | settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made().save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def imported(folder: Path) -> tuple[Any, list[str]]:
    """The model that `quintet import` and `model.init` make of ``folder``, and their notes."""
    notes: list[str] = []
    config = TransformerConfig.model_validate(
        model_section(read_config(find_checkpoint(str(folder)), notes.append), str(folder))
    )
    start = pretrained_weights(str(folder), config, ROWS, LENGTH)
    return build_model(config, ROWS, LENGTH, seed=0, weights=start.weights).eval(), notes + start.notes


def taken_as_it_is(folder: Path, **keys: Any) -> tuple[Any, list[str]]:
    """The same under `kind: huggingface`."""
    model: Any = build_model(described(folder, **keys), ROWS, LENGTH, seed=0).eval()
    return model, model.notes


def described(folder: Path, **keys: Any) -> HuggingFaceConfig:
    return HuggingFaceConfig(kind="huggingface", name_or_path=str(folder), **keys)


WAYS = [imported, taken_as_it_is]


@torch.no_grad()
def assert_reads_as_transformers(folder: Path, way: Callable[[Path], tuple[Any, list[str]]]) -> list[str]:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits
    model, notes = way(folder)
    torch.testing.assert_close(model(IDS), theirs, rtol=1e-5, atol=1e-5)
    return notes


# Two sets of weights in one folder.


def one_safe(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def safe_shards(model: Any, folder: Path) -> None:
    model.save_pretrained(folder / "shards", max_shard_size="8KB")
    for file in (folder / "shards").glob("model*"):
        file.rename(folder / file.name)


def one_pickle(model: Any, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def pickled_shards(model: Any, folder: Path) -> None:
    state = model.state_dict()
    where = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(state)}
    for file in set(where.values()):
        torch.save({name: value for name, value in state.items() if where[name] == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


SETS = [one_safe, safe_shards, one_pickle, pickled_shards]


@pytest.mark.parametrize("kinds", [some for n in (1, 2, 4) for some in itertools.combinations(SETS, n)])
def test_of_several_sets_of_weights_the_one_that_transformers_reads_counts(kinds: Any, tmp_path: Path) -> None:
    made().config.save_pretrained(tmp_path)
    for seed, write in enumerate(kinds):
        write(made(seed), tmp_path)
    for way in WAYS:
        notes = assert_reads_as_transformers(tmp_path, way)
        assert len(notes) == (len(kinds) > 1), notes
        assert all("is read, as transformers does" in note and " beside it " in note for note in notes)


def test_other_files_beside_the_weights_are_no_weights(folder: Path) -> None:
    for name in ("training_args.bin", "optimizer.bin", "tokenizer.model"):
        (folder / name).write_bytes(b"x")
    assert imported(folder)[1] == []
    (folder / "model.fp16.safetensors").write_bytes(b"x")
    (folder / "consolidated.00.pth").write_bytes(b"x")
    note = (
        f"{folder}: model.safetensors is read, as transformers does; consolidated.00.pth and 1 more beside it are not"
    )
    assert imported(folder)[1] == taken_as_it_is(folder)[1] == [note]


def test_the_file_that_the_configuration_names_counts(folder: Path) -> None:
    one_safe(made(1), folder)
    (folder / "model.safetensors").rename(folder / "mine.safetensors")
    one_safe(made(2), folder)
    settings(transformers_weights="mine.safetensors")(folder)
    for way in WAYS:
        assert_reads_as_transformers(folder, way)


# A head of its own beside a flag that says it is the embedding.

TIED = ["llama", "qwen2", "qwen3", "phi", "gemma", "olmo2", "mistral"]


def with_head(folder: Path, kind: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """A checkpoint of a tied model, whose file holds the tensors after ``change``."""
    from safetensors.torch import load_file, save_file

    made(0, kind, tie_word_embeddings=True).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("way", WAYS)
def test_a_head_of_its_own_is_kept_whatever_the_flag_says(kind: str, way: Any, tmp_path: Path) -> None:
    with_head(tmp_path, kind, lambda state: state["lm_head.weight"].mul_(-1.5))
    [note] = assert_reads_as_transformers(tmp_path, way)
    assert "config.json says tie_word_embeddings: true, but the head differs from the embedding" in note
    model = way(tmp_path)[0]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count_pretrained(described(tmp_path), ROWS, LENGTH).total == count
    outline = build_model(described(tmp_path), ROWS, LENGTH, seed=0, meta=True)
    if way is taken_as_it_is:
        assert {name for name, _ in outline.named_parameters()} == {name for name, _ in model.named_parameters()}
        model.merged().save_pretrained(tmp_path / "again")
        back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
        assert back.config.tie_word_embeddings is False
        torch.testing.assert_close(back(IDS).logits, model(IDS))


@pytest.mark.parametrize("way", WAYS)
def test_the_same_matrix_under_two_names_is_one(way: Any, tmp_path: Path) -> None:
    with_head(tmp_path, "llama", lambda state: None)
    assert assert_reads_as_transformers(tmp_path, way) == []
    tied = sum(p.numel() for p in way(tmp_path)[0].parameters())
    with_head(tmp_path, "llama", lambda state: state.pop("model.embed_tokens.weight"))  # kept by its other name alone
    assert assert_reads_as_transformers(tmp_path, way) == []
    assert sum(p.numel() for p in way(tmp_path)[0].parameters()) == tied


def test_a_run_file_that_calls_them_one_is_refused(tmp_path: Path) -> None:
    with_head(tmp_path, "llama", lambda state: state["lm_head.weight"].mul_(2))
    tied = model_section({**read_config(tmp_path), "tie_word_embeddings": True}, "it")
    with pytest.raises(UserError, match=r"model.tie_embeddings: True, but .* has False"):
        pretrained_weights(str(tmp_path), TransformerConfig.model_validate(tied), ROWS, LENGTH)


def test_tensors_without_a_place_are_named(folder: Path) -> None:
    tensors({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)})(folder)
    [note] = assert_reads_as_transformers(folder, taken_as_it_is)
    assert "1 of its tensors have no place in LlamaForCausalLM and are not used (model.layers.0.self_attn.q_p" in note
    [note] = taken_as_it_is(folder, config={"num_hidden_layers": 1})[1]
    assert "10 of its tensors have no place" in note


# Broken folders, and those that would run code.


def settings(**values: Any) -> Break:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def tensors(values: dict[str, Any]) -> Break:
    def change(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors") | values
        kept = {name: value for name, value in state.items() if value is not None}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def content(name: str, data: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(data)


def index(text: str) -> Break:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(text)

    return change


class Command:
    """Unpickling it would leave a trace."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["HOME"] + "/ran",)


def _quantized() -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch gives these types up
        return {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}


def pickled(make: Callable[[], Any], **how: Any) -> Break:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(make(), folder / "pytorch_model.bin", **how)

    return change


def code(folder: Path) -> None:
    (folder / "mine.py").write_text("import os; os.mkdir(os.environ['HOME'] + '/ran')")
    settings(model_type="mine", auto_map={"AutoConfig": "mine.A", "AutoModelForCausalLM": "mine.B"})(folder)


def adapter(folder: Path) -> None:
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    shutil.rmtree(folder)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)


def without(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


BROKEN: dict[str, tuple[Break, str]] = {
    "config: empty": (content("config.json", b""), "config.json: is damaged"),
    "config: no text": (content("config.json", b"\xff\xfe\0"), "config.json: is damaged"),
    "config: null": (content("config.json", b"null"), "config"),
    "config: a list": (content("config.json", b"[]"), "holds a list and no keys"),
    "config: deep": (content("config.json", b"[" * 100_000), "nested too deeply"),
    "config: no width": (settings(hidden_size=None), "hidden_size"),
    "config: another width": (settings(hidden_size=32), r"has the shape \[\d+, 16\], not \[\d+, 32\]|lacks"),
    "config: negative width": (settings(hidden_size=-16), "-16|model.width"),
    "config: heads": (settings(num_attention_heads=3), "not a multiple of the number of attention heads"),
    "config: no heads": (settings(num_attention_heads=0), "modulo by zero"),
    "config: words for numbers": (settings(vocab_size="many"), "vocab_size"),
    "config: layers": (settings(num_hidden_layers=10**9), "says 1000000000 layers"),
    "config: rotary": (settings(rope_parameters={"rope_type": "linear"}), "factor"),
    "config: quantised": (settings(quantization_config=5), "quant|int"),
    "config: endless labels": (settings(num_labels=10**12), "num_labels: 1000000000000 are more than 1000000"),
    "config: endless width": (
        settings(hidden_size=10**19),
        "hidden_size: the number is beyond 64 bits; correct it|no model of its sizes|cannot be built",
    ),
    "config: weights elsewhere": (settings(transformers_weights="../x.safetensors"), "is no file beside it"),
    "code": (code, "custom code|needs the Python code that lies beside it"),
    "weights: none": (without("model.safetensors"), "holds neither model.safetensors nor pytorch_model.bin$"),
    "weights: a variant": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.fp16.safetensors"),
        "model.fp16.safetensors, which is there, has no name that transformers looks for",
    ),
    "weights: empty": (content("model.safetensors", b""), "is damaged"),
    "weights: cut": (
        lambda folder: os.truncate(folder / "model.safetensors", 3000),
        "model.safetensors: is damaged",
    ),
    "weights: a pointer": (
        content("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is git-lfs' pointer to the weights",
    ),
    "weights: one is missing": (tensors({"model.norm.weight": None}), r"lacks .*model.norm.weight"),
    "weights: no head": (tensors({"lm_head.weight": None}), r"lacks .*lm_head.weight"),
    "weights: a shape": (tensors({"model.norm.weight": torch.ones(5)}), r"norm.weight has the shape \[5\], not \[16\]"),
    "weights: not finite": (tensors({"model.norm.weight": torch.full((16,), torch.nan)}), "are not finite"),
    "weights: integers": (
        tensors({"model.norm.weight": torch.ones(16, dtype=torch.int64)}),
        "model.norm.weight holds numbers of type int64 and no floats",
    ),
    "weights: one of no axis": (
        tensors({"model.norm.weight": torch.tensor(True)}),
        "type bool and no floats|has the shape",
    ),
    "index: no JSON": (index("{"), "index.json: is damaged"),
    "index: no map": (index("{}"), "is damaged .*weight_map"),
    "index: of nothing": (index('{"weight_map": {}}'), "names no file"),
    "index: a missing file": (index('{"weight_map": {"a": "b.safetensors"}}'), "b.safetensors: is missing"),
    "index: elsewhere": (index('{"weight_map": {"a": "/etc/passwd"}}'), "/etc/passwd, which lies elsewhere"),
    "index: above": (index('{"weight_map": {"a": "../a.safetensors"}}'), "which lies elsewhere"),
    "pickle: a command": (pickled(lambda: {"a": Command()}), r"asks for \w+.mkdir when it is unpickled, which is not"),
    "pickle: a command, of old": (
        pickled(lambda: {"a": Command()}, _use_new_zipfile_serialization=False),
        r"asks for \w+.mkdir when it is unpickled, which is not run",
    ),
    "pickle: a module": (pickled(lambda: torch.nn.Linear(2, 2)), "asks for torch.nn.modules.linear.Linear"),
    "pickle: a list": (pickled(lambda: [torch.ones(2)]), "holds a list, not tensors by name"),
    "pickle: nested": (pickled(lambda: {"state_dict": {"a": torch.ones(2)}}), "holds a dict as 'state_dict'"),
    "pickle: no names": (pickled(lambda: {3: torch.ones(2)}), "holds a Tensor as 3"),
    "pickle: sparse": (pickled(lambda: {"a": torch.eye(3).to_sparse()}), "a is a sparse_coo tensor"),
    "pickle: no numbers": (pickled(lambda: {"a": torch.ones(3, device="meta")}), "a is a meta tensor"),
    "pickle: quantized": (pickled(_quantized), "a is a quantized tensor"),
    "pickle: cut, of old": (
        lambda folder: [
            pickled(lambda: {"a": torch.ones(300)}, _use_new_zipfile_serialization=False)(folder),
            os.truncate(folder / "pytorch_model.bin", 900),
        ],
        "pytorch_model.bin: is damaged",
    ),
    "pickle: a file that is none": (
        lambda folder: [
            (folder / "model.safetensors").unlink(),
            content("pytorch_model.bin", b"\x80\x02X\x01")(folder),
        ],
        "pytorch_model.bin: is (damaged|no file that torch.save wrote)",
    ),
    "adapters": (adapter, "holds a LORA adapter .* made for .*; give that model, or .*merge_and_unload"),
    "adapters, damaged": (content("adapter_config.json", b"{"), "adapter_config.json: is damaged"),
    "nothing": (lambda folder: [file.unlink() for file in folder.iterdir()], "no config.json"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_folder_is_refused_in_one_line_and_runs_nothing(name: str, way: Any, folder: Path) -> None:
    change, message = BROKEN[name]
    change(folder)
    with pytest.raises(UserError, match=message) as refused:
        way(folder)
    assert "\n" not in refused.value.problems[0]
    assert str(folder) in str(refused.value)
    assert not Path("~/ran").expanduser().exists()
