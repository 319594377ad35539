"""What holds for the runs of every dialect: what trackers get, and in whose words a mistake is said."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.dialects.conftest import Make
from tests.dialects.small_files import SmallFile
from tests.dialects.small_files import small_file as small_file  # a fixture

from quintet.config.dialects import NAMES


@pytest.fixture(params=NAMES)
def dialect(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(dialect: str, small_file: SmallFile, tmp_path: Path) -> dict[str, Any]:
    return small_file(dialect, tmp_path / "cache")


class Servers:
    """What Weights & Biases and MLflow were sent: metrics by step, and files by name."""

    def __init__(self) -> None:
        self.wandb: dict[int, dict[str, Any]] = {}
        self.mlflow: dict[int, dict[str, float]] = {}
        self.wandb_files: dict[str, str] = {}
        self.mlflow_files: dict[str, str] = {}

    def steps(self, tracker: str, metric: str) -> list[int]:
        """The steps of which ``tracker`` has ``metric``."""
        return [step for step, metrics in sorted(vars(self)[tracker].items()) if metric in metrics]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    """Both libraries replaced by ones that keep what they are given."""
    sent = Servers()

    class Run:
        id, starting_step = "1", 0
        config = summary = SimpleNamespace(update=lambda *_, **__: None)

        def log(self, metrics: dict[str, Any], step: int) -> None:
            sent.wandb.setdefault(step, {}).update(metrics)

        def save(self, file: str, base_path: str, policy: str) -> None:
            sent.wandb_files[str(Path(file).relative_to(base_path))] = Path(file).read_text()

        def finish(self, exit_code: int) -> None:
            assert exit_code == 0

    class Client:
        def __init__(self, _: str) -> None:
            pass

        def log_batch(self, _: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
            for name, value, _, step in metrics:
                sent.mlflow.setdefault(step, {})[name] = value

        def log_text(self, _: str, text: str, file: str) -> None:
            sent.mlflow_files[file] = text

        def get_run(self, _: str) -> Any:
            return SimpleNamespace(data=SimpleNamespace(params={}))

        def __getattr__(self, _: str) -> Any:  # experiments, the run itself, its status
            return lambda *_, **__: SimpleNamespace(experiment_id="0", info=SimpleNamespace(run_id="1"))

    def init(*, name: str = "", project: str = "", entity: str = "", dir: str = "", reinit: str = "") -> Run:
        return Run()

    def kept(*values: Any) -> tuple[Any, ...]:
        return values

    fakes = {
        "wandb": {"init": init, "Html": str},
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
"""Seven steps, or eight, of which each third is logged."""
TRACKERS = {"quintet.track": [{"kind": "wandb"}, {"kind": "mlflow", "tracking_uri": "http://nowhere"}]}


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
def test_so_they_do_from_the_trainers_of_other_libraries(trainer: str, make: Make, servers: Servers) -> None:
    made = make({"training_args": OTHER_TRAINERS[trainer], "trainer": trainer} | TRACKERS)
    assert list(made.metrics("train/loss")) == [1, 2, 3, 4, 5, 6, 7]
    assert [servers.steps(tracker, "train/loss") for tracker in ("wandb", "mlflow")] == [[3, 6], [3, 6]]
