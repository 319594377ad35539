"""Runs of every dialect: the metrics and files that trackers get, and messages that name the file's own keys."""

from __future__ import annotations

import copy
import itertools
import json
import re
import sys
from contextlib import chdir
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.dialects.conftest import Make, set_in
from tests.dialects.small_files import SmallFile
from tests.dialects.small_files import small_file as small_file  # a fixture
from tests.helpers import QUICK, Command

from quintet import api
from quintet.cli import main
from quintet.config.describe import KeyInfo
from quintet.config.dialects import NAMES, dialect_named
from quintet.config.keypath import show
from quintet.config.load import Reading, load_run_config
from quintet.config.provenance import Problem, RunFileError
from quintet.errors import UserError
from quintet.track.console import Reporter
from quintet.train.intervals import Trial
from quintet.train.loop import train as train_run


@pytest.fixture(params=NAMES)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(dialect: str, small_file: SmallFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return small_file(dialect, tmp_path / "cache")


class Servers:
    """The metrics by step and the files by name that Weights & Biases and MLflow received."""

    def __init__(self) -> None:
        self.wandb: dict[int, dict[str, Any]] = {}
        self.mlflow: dict[int, dict[str, float]] = {}
        self.wandb_files: dict[str, bytes] = {}
        self.mlflow_files: dict[str, bytes] = {}

    def steps(self, tracker: str, metric: str) -> list[int]:
        """Return the steps at which ``tracker`` got ``metric``."""
        return [step for step, metrics in sorted(vars(self)[tracker].items()) if metric in metrics]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    """Both libraries, replaced by fakes that keep what they get."""
    sent = Servers()

    class Run:
        id, starting_step = "1", 0
        config = summary = SimpleNamespace(update=lambda *_, **__: None)
        settings = SimpleNamespace(finish_timeout=None, sync_dir="")

        def log(self, metrics: dict[str, Any], step: int) -> None:
            sent.wandb.setdefault(step, {}).update(metrics)

        def save(self, file: str, base_path: str, policy: str) -> None:
            sent.wandb_files[str(Path(file).relative_to(base_path))] = Path(file).read_bytes()

        def finish(self, exit_code: int) -> None:
            assert exit_code == 0

    class Client:
        def __init__(self, _: str) -> None:
            pass

        def log_batch(self, _: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
            for name, value, _, step in metrics:
                sent.mlflow.setdefault(step, {})[name] = value

        def log_text(self, _: str, text: str, file: str) -> None:
            sent.mlflow_files[file] = text.encode()

        def log_artifacts(self, _: str, folder: str, below: str) -> None:
            files = (file for file in Path(folder).rglob("*") if file.is_file())
            sent.mlflow_files |= {f"{below}/{file.relative_to(folder)}": file.read_bytes() for file in files}

        def get_run(self, _: str) -> Any:
            return SimpleNamespace(data=SimpleNamespace(params={}, metrics={}))

        def __getattr__(self, _: str) -> Any:  # experiments, the run itself, its status
            return lambda *_, **__: SimpleNamespace(experiment_id="0", info=SimpleNamespace(run_id="1"))

    def init(**_: Any) -> Run:
        return Run()

    def kept(*values: Any) -> tuple[Any, ...]:
        return values

    fakes = {
        "wandb": {
            "init": init,
            "Html": str,
            "setup": lambda: SimpleNamespace(settings=SimpleNamespace(mode="offline")),
        },
        "mlflow": {"MlflowClient": Client, "entities": SimpleNamespace(Metric=kept, Param=kept, RunTag=kept)},
    }
    for name, attributes in fakes.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return sent


LOGGED: dict[str, dict[str, Any]] = {
    "phyagi": {"training_args.max_steps": 7, "training_args.logging_steps": 3},
    "stlm": {"trainer.max_iters": 7, "trainer.log_interval": 3},
    "tmrc": {"training.train_steps": 7, "training.log_interval": 3},
    "piano": {"optimizer.max_iters": 7, "logging.log_interval": 3},
    "vectorlm": {"quintet.train": {"log_every": 3}},  # it has no key for this; `logging_steps` evaluates
}
"""Seven or eight steps, of which every third is logged."""
TRACKERS = {"quintet.track": [{"kind": "wandb"}, {"kind": "mlflow", "tracking_uri": "mlruns"}]}


def test_trackers_get_training_metrics_at_the_steps_that_the_file_says(
    dialect: str, make: Make, servers: Servers
) -> None:
    made = make(LOGGED[dialect] | TRACKERS)
    assert len(made.metrics("train/loss")) in (7, 8)
    for tracker in ("wandb", "mlflow"):
        for metric in ("train/loss", "train/lr", "train/grad_norm", "speed/tokens_per_second"):
            assert servers.steps(tracker, metric) == [3, 6]
        assert servers.steps(tracker, "validation/loss") == list(made.metrics("validation/loss"))
    assert {step: servers.wandb[step]["train/loss"] for step in (3, 6)} == {
        step: loss for step, loss in made.metrics("train/loss").items() if step in (3, 6)
    }


OTHER_TRAINERS = {
    "huggingface": {"per_device_train_batch_size": 4, "learning_rate": 0.01, "max_steps": 7, "logging_steps": 3},
    "lightning": {
        "train_micro_batch_size_per_gpu": 4,
        "lightning_module": {"optimizer": {"type": "adamw", "params": {"lr": 0.01}}},
        "trainer": {"max_steps": 7, "log_every_n_steps": 3},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["phyagi"])
@pytest.mark.parametrize("trainer", OTHER_TRAINERS)
def test_the_trainers_of_other_libraries_log_at_the_same_steps(trainer: str, make: Make, servers: Servers) -> None:
    made = make({"training_args": OTHER_TRAINERS[trainer], "trainer": trainer} | TRACKERS)
    assert list(made.metrics("train/loss")) == [1, 2, 3, 4, 5, 6, 7]
    assert [servers.steps(tracker, "train/loss") for tracker in ("wandb", "mlflow")] == [[3, 6], [3, 6]]


def test_trackers_get_the_file_as_it_was_written_beside_the_native_one(
    dialect: str, make: Make, servers: Servers
) -> None:
    """Byte for byte, also when the run is continued from its folder."""
    made = make(LOGGED[dialect] | TRACKERS)
    written = "\r\n".join(f"{line}  # mine" for line in made.file.read_text().splitlines()).encode()
    made.file.write_bytes(written)
    with chdir(made.file.parent):
        assert train("their.yaml", "--dialect", dialect) == 0
        [run] = (file.parent for file in Path().rglob("run.yaml"))
        assert servers.wandb_files == {"original/their.yaml": written}
        assert servers.mlflow_files["original/their.yaml"] == written
        assert yaml.safe_load(servers.mlflow_files["run.yaml"])["train"]["log_every"] == 3
        servers.wandb_files.clear()
        assert train(str(run)) == 0
        assert servers.wandb_files == {"original/their.yaml": written}


@pytest.mark.parametrize("dialect", ["tmrc", "phyagi"])
def test_they_get_all_files_of_a_composition(
    dialect: str, base: dict[str, Any], servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a file that others override value by value, and one that a key names."""
    monkeypatch.chdir(tmp_path)
    values = base["quintet"] | {"track": TRACKERS["quintet.track"]}
    if dialect == "tmrc":
        texts = {
            "model/gpt.yaml": yaml.safe_dump(base["model"]),
            "size/small.yaml": "# @package model\nd_model: 48\n",
            "main.yaml": yaml.safe_dump(
                base | {"model": {"d_model": 16}, "quintet": values}
                | {"defaults": [{"model": "gpt"}, {"size": "small"}, "_self_"]}
            ),
        }  # fmt: skip
    else:
        arguments = base["training_args"] | {"ds_config": "ds/config.json"}
        texts = {
            "ds/config.json": json.dumps(base["training_args"]["ds_config"]),
            "base.yaml": yaml.safe_dump({"seed": 1, "model": base["model"]}),
            "main.yaml": yaml.safe_dump(
                base | {"extends": "base.yaml", "training_args": arguments, "quintet": values}
            ),
        }  # fmt: skip
    for name, text in texts.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    assert train("main.yaml", "--dialect", dialect) == 0
    assert servers.wandb_files == {f"original/{name}": text.encode() for name, text in texts.items()}


def train(*arguments: str) -> int:
    """Return the exit code of `quintet train`."""
    with pytest.raises(SystemExit) as left:
        main(["train", *QUICK, *arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def has_bounds(key: KeyInfo) -> bool:
    ignored = key.role.unsupported or key.role.no_effect
    return "number" in key.accepts and "list" not in key.accepts and not ignored


def bounded_values(key: KeyInfo) -> list[tuple[float, bool]]:
    """Values at the ends that the table names, each with True, and values just outside of them, with False."""
    step = 1 if key.accepts.startswith("whole number") else 1e-3
    inside, outside = [], []
    words = r"(from|at least|above|to below|below|to|at most) (-?\d+(?:\.\d+)?)"
    for word, limit in re.findall(words, key.accepts):
        end = int(limit) if step == 1 else float(limit)
        sign = -1 if word in ("from", "at least", "above") else 1
        if word in ("above", "to below", "below"):
            inside.append(end - sign * step)
            outside.append(end)
        else:
            inside.append(end)
            outside.append(end + sign * step)
    outside = [value for value in outside if value != 0 or "false: 0" not in key.accepts]
    return [(value, True) for value in inside] + [(value, False) for value in (*outside, float("inf"), float("nan"))]


def test_a_number_is_bounded_as_the_table_of_keys_says(dialect: str, base: dict[str, Any]) -> None:
    """A value within the bounds is not refused for its size; a value outside is, at its own key and line.

    Each file has a value of every key, because all mistakes are reported at once.
    """
    keys = [key for key in dialect_named(dialect).keys if has_bounds(key)]
    assert keys
    file = Path("their.yaml").resolve()
    for row in itertools.zip_longest(*(bounded_values(key) for key in keys)):
        values = copy.deepcopy(base)
        tried = [(key, *value) for key, value in zip(keys, row, strict=True) if value is not None]
        for key, value, _ in tried:
            set_in(values, key.path.replace("[]", ".0"), value)
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        lines = file.read_text().splitlines()
        problems: list[Problem] = []
        try:
            load_run_config([file], [], Reading(dialect))
        except RunFileError as error:
            problems = [one for one in error.details if one.message.startswith("must be ")]
        for key, value, fits in tried:
            own = [one for one in problems if one.key.split(", ")[0] in ways(key)]
            assert bool(own) != fits, (key.path, value, problems)
            for one in own:
                assert one.origin.line is not None
                assert f"{key.name}:" in lines[one.origin.line - 1]


def ways(key: KeyInfo) -> set[str]:
    return {path.replace("[]", "[0]") for path in (key.path, *key.aliases)}


MISTAKES: dict[str, dict[str, dict[str, Any]]] = {
    "no data": {
        "phyagi": {"dataset.0.train_file": "/nowhere/train.npy"},
        "vectorlm": {"dataset.train_ds": "/nowhere/train"},
        "stlm": {"trainer.dataset": "/nowhere/texts.jsonl"},
        "tmrc": {"datasets.path": "/nowhere/words"},
        "piano": {"quintet.data.sources.0.path": "/nowhere/questions.jsonl"},
    },
    "data that do not fit": {
        "phyagi": {"dataset.0.seq_len": 5000, "model.n_positions": 5000},
        "vectorlm": {"dataset.ignore_index": -1},
        "stlm": {"model.context_window": 100_000},
        "tmrc": {"model.context_length": 5000},
        "piano": {"quintet.data.validation": 0.0001, "quintet.data.packing": {"kind": "stream"}},
    },
}
"""Mistakes that only the data reveal."""


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("verb", ["check", "plan", "prepare", "data", "show-batch", "train"])
def test_a_late_mistake_is_reported_at_the_key_and_line_of_the_file(
    dialect: str, verb: str, mistake: str, make: Make, command: Command
) -> None:
    """In every verb that reads the data, and with no names but those of the file."""
    made = make(MISTAKES[mistake][dialect])
    with chdir(made.file.parent):
        strict = ["--strict"] if verb == "check" else []
        code, out, err = command(verb, "their.yaml", "--dialect", dialect, *strict)
    if (verb == "check" and mistake != "no data") or (verb == "plan" and code == 0):
        assert code == 0, err
        return
    assert code == 2, (out, err)
    lines = [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]
    assert lines
    known = set().union(*(ways(key) for key in dialect_named(dialect).keys))
    for line in lines:
        found = re.fullmatch(r"their\.yaml(?::(\d+))?: ((\S+?)(?:, \S+)*): (.*)", line)
        assert found, line
        if "is not prepared" in line:
            continue
        if found[1]:
            name = found[3].rpartition(".")[2].partition("[")[0]
            assert f"{name}:" in made.file.read_text().splitlines()[int(found[1]) - 1], line
        said = re.sub(r"\([^()]* of the run file\)", "", line).replace("their.yaml", "")
        native = {show(path) for path in made.loaded.provenance if len(path) > 1} - known
        assert not [word for word in re.findall(r"[\w.\[\]]+", said) if word in native], line


@pytest.mark.parametrize("dialect", ["tmrc"])
def test_what_a_run_says_is_in_the_words_of_the_file(dialect: str, make: Make, command: Command) -> None:
    """A message names the file's key and line, and not the native key."""
    made = make({"training.use_oracle": True})
    with chdir(made.file.parent):
        code, out, err = command("train", "their.yaml", "--dialect", dialect)
    assert code == 0, err
    line = 1 + next(at for at, text in enumerate(made.file.read_text().splitlines()) if "use_oracle" in text)
    assert f"training.use_oracle (their.yaml:{line}): each step has the batch of step 1" in out
    assert "data.fixed_batch" not in out


def test_a_line_is_said_in_the_words_of_the_file(dialect: str, make: Make) -> None:
    """A native key that one key of the file sets becomes that key, with its line; the rest of a message stays."""
    loaded = make().loaded
    said = 0
    for path, place in loaded.provenance.items():
        if place.line is None or not place.key or ", " in place.key or len(path) < 2:
            continue
        native = show(path)
        assert loaded.in_words(f"{native}: 3 of them, see out/x.yaml") == (
            f"{place.key} ({place}): 3 of them, see out/x.yaml"
        )
        said += 1
    assert said > 10
    untouched = "step 4/8 · loss 2.1 · 3,000 tokens/s, in runs/tiny/metrics.jsonl"
    assert loaded.in_words(untouched) == untouched


DECIDED_BY_DATA = {"model.vocab_size", "tokenizer.vocab_size", "dataset.ignore_index"}
"""Keys whose values only the data can check."""


@pytest.mark.slow
def test_what_check_accepts_at_the_ends_of_a_number_trains(dialect: str, base: dict[str, Any], tmp_path: Path) -> None:
    """One step, without a traceback and without a later refusal other than by the data."""
    refused: list[str] = []
    file, tried = Path("their.yaml").resolve(), 0
    inside = [
        (key, value)
        for key in dialect_named(dialect).keys
        if has_bounds(key)
        for value, fits in bounded_values(key)
        if fits
    ]
    for number, (key, value) in enumerate(inside):
        values = copy.deepcopy(base)
        set_in(values, key.path.replace("[]", ".0"), value)
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        try:
            loaded = load_run_config([file], [], Reading(dialect))
            api.check(api.with_source(loaded))
        except UserError:
            continue
        tried += 1
        (tmp_path / str(number)).mkdir()
        with chdir(tmp_path / str(number)):
            try:
                train_run(loaded.config, Reporter(Console(quiet=True)), None, Trial(1))
            except UserError as error:
                if key.path not in DECIDED_BY_DATA:
                    refused.append(f"{key.path}: {value}: {loaded.located(error)}")
    assert tried > 10
    assert refused == []


def test_a_value_of_another_kind_is_refused_at_its_key_and_line(dialect: str, base: dict[str, Any]) -> None:
    """A section in place of a number, a switch, a word or a text: in one file for all keys, then in one for each key
    of which that file says nothing, because the value of another key hides it."""
    file = Path("their.yaml").resolve()
    several = ("list", "section", "anything", "mapping", "pair")
    keys = [
        key
        for key in dialect_named(dialect).keys
        if not (key.role.unsupported or any(word in key.accepts for word in several))
        and ("[]" not in key.path or key.path.partition("[]")[0] in base)  # no list that the small file lacks
    ]

    def problems_of(wrong: list[KeyInfo]) -> list[tuple[str, str]]:
        """The key of each problem of a file in which these keys are wrong, and the line that it points to."""
        values = copy.deepcopy(base)
        for key in wrong:
            set_in(values, key.path.replace("[]", ".0"), {"x": 1})
        file.write_text(yaml.safe_dump(values, sort_keys=False))
        with pytest.raises(RunFileError) as error:
            load_run_config([file], [], Reading(dialect))
        lines = ["", *file.read_text().splitlines()]
        return [(problem.key, lines[problem.origin.line or 0]) for problem in error.value.details]

    assert keys
    together = problems_of(keys)
    for key in keys:
        if any(path in ways(key) and f"{key.name}:" in line for path, line in together):
            continue
        own = [line for path, line in problems_of([key]) if path.startswith(tuple(ways(key)))]
        assert own, key.path
        assert all(f"{key.name}:" in line for line in own), key.path
