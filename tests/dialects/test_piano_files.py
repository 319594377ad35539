"""piano-gpt: its model, and whole files: the document's, those of its config folders, the examples, both ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.dialects.conftest import Make
from tests.dialects.piano_folders import DOCUMENT, EXAMPLES, FIRST, THIRD, on_text, small_file, write_questions
from tests.helpers import measured, refused, train_with_translation
from torch.nn import functional

from quintet.config.dialects import detect, dialect_named
from quintet.config.dialects.back import translate_back
from quintet.config.load import Loaded, Reading, load_run_config
from quintet.errors import UserError
from quintet.model.count import count_parameters

DIALECT = "piano"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(tmp_path_factory.mktemp("questions"))


@pytest.fixture
def base(questions: Path, tmp_path: Path) -> dict[str, Any]:
    return small_file(questions, tmp_path / "cache")


def nanogpt(state: Mapping[str, torch.Tensor], ids: torch.Tensor, layers: int, heads: int) -> torch.Tensor:
    """Logits of nanoGPT's model: float [batch, length, vocabulary], from ids [batch, length]."""
    width = state["embedding.weight"].shape[1]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    length = ids.shape[1]
    x = state["embedding.weight"][ids] + state["position.weight"][:length]
    hidden = torch.ones(length, length).triu(1).bool()
    for layer in range(layers):
        block = f"blocks.{layer}"
        parts = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, width // heads)).transpose(1, 2) for part in parts)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(width // heads)).masked_fill(hidden, -math.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"{block}.attention.output")
        inner = linear(norm(x, f"{block}.feedforward_norm"), f"{block}.feedforward.up")
        x = x + linear(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))), f"{block}.feedforward.down")
    return norm(x, "norm") @ state["embedding.weight"].T


def test_the_model_is_nanogpts(make: Make) -> None:
    model = make({"model.bias": True, "model.n_layer": 2}).model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([[5, 6, 1, 7, 8, 9, 200, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids), nanogpt(model.state_dict(), ids, 2, 2), rtol=1e-4, atol=1e-4)


def test_the_weights_start_as_nanogpts(make: Make) -> None:
    """Normal with 0.02, and 0.02 / sqrt(2 · layers) where a projection writes into the residual stream."""
    state = make({"model.n_embd": 128, "model.n_layer": 8, "model.bias": True}).model.state_dict()
    spread = {name: float(value.std()) for name, value in state.items() if value.dim() == 2}
    into_residual = {name for name in spread if name.endswith(("output.weight", "down.weight"))}
    assert len(into_residual) == 16
    for name, found in spread.items():
        assert found == pytest.approx(0.02 / 4 if name in into_residual else 0.02, rel=0.05), name
    assert all(not value.any() for name, value in state.items() if name.endswith("bias"))


@pytest.mark.parametrize(("name", "millions"), [("gpt2_10M", 9.7), ("gpt2", 85.9)])
def test_presets_have_as_many_parameters_as_the_original(name: str, millions: float, make: Make) -> None:
    """Its reports count all parameters except the positions, with 1,241 tokens."""
    preset = yaml.safe_load((EXAMPLES / f"model/{name}.yaml").read_text(encoding="utf-8")) | {"context_size": 16}
    config = make({"model": preset}).config
    layers, width = preset["n_layer"], preset["n_embd"]
    total = count_parameters(config.model, 1241, 16).total
    assert total == layers * (12 * width**2 + 2 * width) + width + (1241 + 16) * width
    assert (total - 16 * width) / 1e6 == pytest.approx(millions, abs=0.1)


def as_in_the_document(**more: Any) -> dict[str, Any]:
    return yaml.safe_load(DOCUMENT) | more


def read(folder: Path, files: Mapping[str, Any], name: str, dialect: str | None = None) -> Loaded:
    """Write ``files`` into a config folder and read its file ``name``."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        (folder / path).write_text(text, encoding="utf-8")
    return load_run_config([folder / name], [], Reading(dialect))


def test_the_documents_file_is_the_documents_run_on_music(tmp_path: Path) -> None:
    config = read(tmp_path, {"a.yaml": as_in_the_document()}, "a.yaml").config
    [trained] = config.data.sources
    assert (trained.path, trained.split, trained.document.pauses) == ("epr-labs/maestro-sustain-v2", "train", 4.0)
    validated = [(one.label, one.split, one.document.only_by) for one in config.data.validation_sources]
    assert validated == [("full_val", "validation", ())] + [
        (name, "validation", (name,)) for name in ("bach", "chopin", "mozart")
    ]
    packing = config.data.packing
    assert (packing.kind, packing.notes_per_record, packing.tasks, packing.speeds) == ("tasks", 128, (), ())
    assert config.tokenizer.kind == "exponential_time"
    assert config.data.learn_prompts


def test_a_file_without_music_and_without_text_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path, {"a.yaml": {"stage": "piano_task"}}, "a.yaml")
    [line] = error.value.problems
    assert "dataset.extra_datasets: names nothing to train on; give data sets of notes" in line


def test_the_documents_file_on_text_is_the_documents_run(tmp_path: Path, questions: Path) -> None:
    """Every value of the document, seen in the native run file."""
    values = as_in_the_document(quintet=on_text(questions, tmp_path))
    config = read(tmp_path, {"a.yaml": values}, "a.yaml").config
    assert (config.model.layers, config.model.heads, config.model.width) == (12, 12, 768)
    assert (config.model.context_length, config.data.sequence_length) == (2048, 2048)
    assert (config.train.device, config.train.precision, config.train.compile) == ("cuda", "fp16", "auto")
    assert (config.batch.micro_batch_size, config.batch.accumulation, config.batch.samples) == (32, 16, 512)
    assert (config.train.steps, config.train.clip_norm, config.optimizer.weight_decay) == (300_000, 1.0, 0.1)
    assert (config.optimizer.lr, config.optimizer.betas, config.optimizer.eps) == (8e-5, (0.9, 0.95), 1e-8)
    schedule = config.schedule
    assert (schedule.kind, schedule.min_lr, schedule.warmup_steps, schedule.decay_steps) == (
        "cosine",
        8e-6,
        1000,
        300_000,
    )
    assert (config.evaluate.every, config.evaluate.offset, config.evaluate.samples) == (500, 1, 3200)
    assert config.train.log_every == 20
    assert config.track[0].arguments == {"project": "piano-gpt"}


def test_an_empty_file_has_the_documents_values(tmp_path: Path, questions: Path) -> None:
    native = on_text(questions, tmp_path)
    short = read(tmp_path, {"a.yaml": {"stage": "piano_task", "quintet": native}}, "a.yaml").config
    whole = read(tmp_path, {"a.yaml": as_in_the_document(quintet=native)}, "a.yaml").config
    assert short == whole


@pytest.fixture
def compose(tmp_path: Path, questions: Path) -> Callable[..., Loaded]:
    """A file of a config folder, on text."""

    def call(files: Mapping[str, Any], name: str, *overrides: str) -> Loaded:
        text = {"quintet": on_text(questions, tmp_path / "cache")}
        read(tmp_path, {**files, "text.yaml": text}, "text.yaml", dialect="piano")
        return load_run_config([tmp_path / name, tmp_path / "text.yaml"], list(overrides))

    return call


def test_a_config_folder_of_the_documents_generation(compose: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = compose(FIRST, "gpt2_pretraining.yaml", "optimizer.max_iters=5000", "data.batch_size=8")
    config = loaded.config
    assert loaded.dialect is dialect_named("piano")
    assert (config.model.layers, config.model.width, config.model.context_length) == (12, 768, 2048)
    assert (config.train.steps, config.schedule.decay_steps, config.optimizer.lr) == (5000, 5000, 8e-5)
    assert (config.runs_dir, config.batch.micro_batch_size) == ("tmp/checkpoints", 8)
    assert config.track[0].arguments["name"].startswith("midi-gpt2-pretraining-20")
    smaller = compose(FIRST, "gpt2_pretraining.yaml", "model=gpt2_10M").config
    assert (smaller.model.heads, smaller.model.width) == (8, 256)
    piano = compose(FIRST, "gpt2_piano.yaml").config
    assert (piano.schedule.kind, piano.optimizer.lr, piano.data.learn_prompts) == ("constant", 3e-5, False)
    music = load_run_config([tmp_path / "gpt2_pretraining.yaml"], ["tokenizer=awesome"]).config
    assert (music.tokenizer.kind, music.tokenizer.vocab_size, music.data.packing.kind) == ("note_bpe", 10_000, "pieces")
    assert [one.path for one in music.data.sources] == ["epr-labs/maestro-sustain-v2", "epr-labs/giant-midi-sustain-v2"]
    named = load_run_config([tmp_path / "gpt2_piano.yaml"]).config
    assert named.data.packing.tasks == ("velocity_denoising", "pitch_denoising")


def test_a_config_folder_of_the_newest_generation(compose: Callable[..., Loaded], tmp_path: Path) -> None:
    config = compose(THIRD, "gpt2_pretraining.yaml").config
    assert (config.data.sequence_length, config.model.context_length) == (1024, 1024)
    assert (config.batch.samples, config.batch.micro_batch_size, config.batch.accumulation) == (64, 8, 8)
    assert (config.schedule.kind, config.schedule.decay_steps, config.train.steps) == ("cosine", 10000, 300_000)
    assert config.track[0].arguments["entity"] == "epr-labs"
    assert config.data.learn_prompts
    constant = compose(THIRD, "gpt2_pretraining.yaml", "lr=constant_lr").config
    assert (constant.schedule.kind, constant.optimizer.lr) == ("constant", 3e-5)
    with pytest.raises(UserError, match="`quintet train FOLDER` to continue the run"):
        compose(THIRD, "resume_training.yaml")
    with pytest.raises(UserError) as error:
        compose(THIRD, "eval.yaml")
    (line,) = error.value.problems
    assert "`quintet evaluate RUN --records 30" in line
    assert "the same of temperature" in line
    music = load_run_config([tmp_path / "gpt2_pretraining.yaml"]).config
    packing = music.data.packing
    assert (packing.notes_per_record, packing.min_notes_per_record, packing.min_task_notes) == (168, 64, 24)
    assert packing.tasks == (
        "TopLineMasking-n_repetitions=1",
        "TopLineMasking-n_repetitions=2",
        "ChordMasking-n_notes_threshold=3",
    )


def test_tuning_overrides_the_run_that_it_starts_from(compose: Callable[..., Loaded], make: Make) -> None:
    path = make().trained
    loaded = compose(THIRD, "model_tuning.yaml", f"checkpoint_path={path}", "overrides.model.dropout=0.5")
    config = loaded.config
    assert (config.model.init.path, config.model.width, config.model.residual_dropout) == (str(path), 16, 0.5)
    assert (config.data.sequence_length, config.data.learn_prompts) == (16, False)
    assert (config.optimizer.lr, config.schedule.min_lr, config.schedule.decay_steps) == (6e-6, 6e-6, 80000)
    place = loaded.provenance["optimizer", "lr"]
    assert (Path(str(place.file)).name, place.line, place.key) == ("model_tuning.yaml", 14, "lr.learning_rate")
    with pytest.raises(UserError, match=r"overrides\.lr\.min_lr: says 1e-05, and lr\.min_lr says otherwise"):
        compose(THIRD, "model_tuning.yaml", f"checkpoint_path={path}", "++lr.min_lr=3")


@pytest.mark.parametrize(
    ("key", "place", "value", "other", "found"),
    [
        ("training.microbatch_size", "data.batch_size", 3, 2, "train.micro_batch_size"),
        ("training.context_size", "data.context_size", 16, 12, "data.sequence_length"),
        ("model.block_size", "model.context_size", 20, 24, "model.context_length"),
        ("checkpoint_path", "init_from", "scratch", "elsewhere", "model.init"),
        ("optimizer.learning_rate", "lr.learning_rate", 0.01, 0.5, "optimizer.lr"),
        ("training.loss_masking", "loss_masking", "finetuning", "pretraining", "data.learn_prompts"),
        ("out_dir_relative", "out_dir", "out", "elsewhere", "runs_dir"),
    ],
)
def test_other_spellings(key: str, place: str, value: Any, other: Any, found: str, make: Make) -> None:
    others = [place] if place != "model.context_size" else []
    assert make({key: value}, without=others).config == make({place: value}).config
    assert make({key: value}, without=others).origin(found).startswith(f"{key} (line ")
    assert "; keep one" in refused(make, {key: value, place: other})


def test_a_checkpoint_of_the_original_is_not_read(make: Make) -> None:
    assert "is a pickle of piano-gpt" in refused(make, {"init_from": "midi-gpt2-0M-2025-01-28-19-50.pt"})


def test_files_are_known_by_their_keys() -> None:
    piano = dialect_named("piano")
    for keys in ({"stage": "piano_task"}, {"model_task": "piano_task"}, {"command": "resume"}, {"loss_masking": "x"}):
        assert detect(keys) is piano
    assert detect({"init_from": "scratch", "model": {"n_embd": 16}}) is piano
    assert detect({"data": {}, "train": {}}) is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.dropout": 0.1, "model.bias": True, "model.context_size": 24, "loss_masking": "finetuning"},
        {"lr.decay_lr": False, "optimizer.grad_clip": 0, "eval_only": True, "system.dtype": "bfloat16"},
        {"logging.wandb_log": True, "logging.wandb_entity": "us", "logging.wandb_run_name_suffix": "one"},
        {"quintet.seed": 5},
    ],
)
def test_there_and_back(changes: dict[str, Any], make: Make) -> None:
    made = make(changes)
    written = translate_back(dialect_named("piano"), made.config)
    assert written.lost == (("seed: 5 (it would be 1337)",) if "quintet.seed" in changes else ())
    file = made.file.with_name("back.yaml")
    file.write_text(written.text)
    seed = ["quintet.seed=5"] if "quintet.seed" in changes else []
    again = load_run_config([file], ["quintet.name=their", *seed])
    assert again.config == made.config


def test_a_model_that_piano_gpt_cannot_have_is_named_as_lost(make: Make) -> None:
    config = make().config
    rope = config.model_copy(update={"model": type(config.model).model_validate({"kind": "transformer"})})
    lost = "\n".join(translate_back(dialect_named("piano"), rope).lost)
    assert "model.position.kind: rope (it would be learned)" in lost


def test_the_example_trains_by_command_and_its_translation_to_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "out"))
    write_questions(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    example = str(EXAMPLES / "text.yaml")
    out = train_with_translation(command, example, "+quintet.name=again", "layers: 2  # model.n_layer (")
    assert "finished: 12 steps" in out
    assert "dataset.base_dataset_name" in out  # the note on the keys that text replaces
    first, second = (measured(tmp_path / "out" / name) for name in ("text", "again"))
    assert len(first) == 12
    assert first == second
    code, out, err = command("train", example, "eval_only=true")
    assert code == 0, err
    assert "evaluated at step 12: " in out
    assert measured(tmp_path / "out/text") == first


def test_the_example_learns_in_process(make: Make, monkeypatch: pytest.MonkeyPatch, questions: Path) -> None:
    monkeypatch.setenv("DATA_ROOT", str(questions.parent))
    values = yaml.safe_load((EXAMPLES / "text.yaml").read_text(encoding="utf-8"))
    del values["defaults"]
    values["model"] |= {"n_layer": 2, "n_head": 2, "n_embd": 32}
    made = make(values | {"optimizer.max_iters": 30})
    assert made.losses[-1] < 0.6 * made.losses[0]
