from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.helpers import free_port, run_config, wait_until

from quintet.config.describe import plain
from quintet.config.load import load_run_config
from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.track.composite import build_trackers
from quintet.track.jsonl import read_metrics
from quintet.track.mlflow import MLflowTracker, parameters
from quintet.track.names import UsableNames, file_name, usable_name
from quintet.track.tracker import Tracked

TRAIN = {"batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 2}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tracker sets in the environment is gone after the test; a dead server is noticed at once."""
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """A real server of MLflow over a database in ``folder``."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/files"]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
        else:
            raise TimeoutError((folder / "log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def port() -> int:
    return free_port()


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def only_run(store: Any, experiment: str = "quintet") -> Any:
    [run] = store.search_runs([store.get_experiment_by_name(experiment).experiment_id])
    return run


def history(store: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((one.step, one.value) for one in store.get_metric_history(run_id, name))


def artifact(store: Any, run_id: str, path: str, folder: Path) -> str:
    return Path(store.download_artifacts(run_id, path, str(folder))).read_text(encoding="utf-8")


def config_of(track: dict[str, Any], steps: int = 3) -> RunConfig:
    return run_config(train={"steps": steps}, track=[track])


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, as MLflow takes seconds to make one."""
    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    client(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def folder(tmp_path: Path, tables: Path) -> Path:
    """A run folder with an empty database."""
    shutil.copy(tables, tmp_path)
    return tmp_path


def tracker_in(
    folder: Path, first_step: int = -1, say: Callable = print, steps: int = 3, **track: Any
) -> MLflowTracker:
    config = config_of({"kind": "mlflow", **track}, steps)
    assert config.track[0].kind == "mlflow"
    return MLflowTracker(Tracked(config, folder, first_step, {"device": "cpu"}, say), config.track[0], "track[0]")


def check_run(store: Any, folder: Path, name: str, tmp_path: Path) -> None:
    """What a run of 4 steps in ``folder`` left is what ``store`` has."""
    run = only_run(store)
    assert (run.info.run_name, run.info.status) == (name, "FINISHED")
    assert run.data.params == parameters(plain(load_run_config([folder / "run.yaml"]).config))
    assert run.data.params["data.sources.0.path"] == "corpus"
    assert run.data.tags["system.device"] == "cpu"
    assert {"system.torch", "system.quintet", "system.python"} <= run.data.tags.keys()
    assert run.data.tags["checkpoint"] == str((folder / "checkpoints/step-000004").resolve())
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in read_metrics(folder / "metrics.jsonl"):
        for key, value in record.items():
            if key != "step" and ("train/loss" not in record or record["step"] % TRAIN["log_every"] == 0):
                expected.setdefault(key, []).append((int(record["step"]), value))
    assert {key: history(store, run.info.run_id, key) for key in run.data.metrics} == expected
    text = artifact(store, run.info.run_id, "samples/step-000004/sample 0.txt", tmp_path)
    assert f"--- sample 0\n{text}\n" == (folder / "samples/step-000004.txt").read_text()
    config = tmp_path / "read.yaml"
    config.write_text(artifact(store, run.info.run_id, "run.yaml", tmp_path))
    assert load_run_config([config]).config == load_run_config([folder / "run.yaml"]).config


def test_a_file_in_the_run_folder_has_all_of_a_continued_run(train: Callable[..., str], tmp_path: Path) -> None:
    sections: dict[str, Any] = {"model": {}, "evaluate": {"every": 2}, "sample": {"prompts": ["the"], "max_tokens": 4}}
    train(train={"steps": 4, **TRAIN}, track=[{"kind": "mlflow"}], **sections)
    folder = Path("runs/tiny").resolve()
    store = client(f"sqlite:///{folder}/mlflow.db")
    check_run(store, folder, "tiny", tmp_path)
    train(train={"steps": 6, **TRAIN}, track=[{"kind": "mlflow"}], **sections)
    run = only_run(store)
    assert [step for step, _ in history(store, run.info.run_id, "train/loss")] == [2, 4, 6]
    assert (run.data.params["train.steps"], run.data.tags["now.train.steps"]) == ("4", "6")
    assert run.data.tags["checkpoint"].endswith("step-000006")
    assert not Path("mlruns").exists()
    assert run.info.artifact_uri.startswith(folder.as_uri())


@pytest.mark.slow
def test_a_server_has_all_of_a_run(train: Callable[..., str], tmp_path: Path, port: int) -> None:
    with server(tmp_path / "server", port) as uri:
        train(
            train={"steps": 4, **TRAIN},
            model={},
            evaluate={"every": 2},
            sample={"prompts": ["the"], "max_tokens": 4},
            track=[{"kind": "mlflow", "tracking_uri": uri, "run_name": "other"}],
        )
        check_run(client(uri), Path("runs/tiny"), "other", tmp_path)
    assert not Path("runs/tiny/mlflow.db").exists()


def test_what_was_sent_before_a_kill_is_not_sent_again(folder: Path) -> None:
    killed = tracker_in(folder)
    for step in range(1, 6):
        killed.log(step, {"train/loss": float(step)})
    killed.log(4, {"validation/loss": 4.0})
    killed._metrics.close()  # the run itself is never ended
    continued = tracker_in(folder, first_step=3)
    for step in range(4, 8):
        continued.log(step, {"train/loss": float(step), "validation/loss": float(step)})
    store = client(f"sqlite:///{folder}/mlflow.db")
    assert only_run(store).info.status == "RUNNING"
    continued.close("stopped")
    run = only_run(store)
    assert run.info.status == "KILLED"
    assert history(store, run.info.run_id, "train/loss") == [(step, float(step)) for step in range(1, 8)]
    assert history(store, run.info.run_id, "validation/loss") == [(step, float(step)) for step in range(4, 8)]


def test_a_moved_folder_is_continued_where_it_is_now(folder: Path) -> None:
    from mlflow.tracking._tracking_service import utils

    before, after = folder / "before", folder / "after"
    before.mkdir()
    shutil.move(folder / "mlflow.db", before)
    first = tracker_in(before)
    first.text(1, "sample 0", "one")
    first.close()
    shutil.move(before, after)
    utils._artifact_repos_cache.clear()  # as in a process of its own
    second = tracker_in(after, first_step=1)
    second.text(2, "sample 0", "two")
    second.close()
    assert not before.exists()
    store = client(f"sqlite:///{after}/mlflow.db")
    run_id = only_run(store).info.run_id
    texts = [artifact(store, run_id, f"samples/step-00000{step}/sample 0.txt", folder) for step in (1, 2)]
    assert texts == ["one", "two"]


@pytest.mark.slow
def test_a_server_that_dies_is_said_once_and_gets_everything_when_it_is_back(tmp_path: Path, port: int) -> None:
    said: list[str] = []
    with server(tmp_path / "server", port) as uri:
        tracker = tracker_in(tmp_path, say=said.append, tracking_uri=uri, experiment="mine")
        tracker.log(1, {"train/loss": 1.0})
        wait_until(lambda: not tracker._metrics._items)
    for step in (2, 3):
        tracker.log(step, {"train/loss": float(step)})
        tracker.text(step, "sample 0", "text")
        wait_until(lambda: len(said) > 0)
    assert len(said) == 1
    assert said[0].startswith("track[0]: mlflow fails: ")
    with server(tmp_path / "server", port) as uri:
        tracker.log(4, {"train/loss": 4.0})
        tracker.close()
        store = client(uri)
        run = only_run(store, "mine")
        assert history(store, run.info.run_id, "train/loss") == [(step, float(step)) for step in (1, 2, 3, 4)]
        assert artifact(store, run.info.run_id, "samples/step-000002/sample 0.txt", tmp_path) == "text"
        assert run.info.status == "FINISHED"
    assert len(said) == 1


def test_what_a_dead_server_never_got_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracker = tracker_in(folder, say=said.append)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("refused\nas ever")

    for name in ("log_batch", "set_terminated"):
        monkeypatch.setattr(tracker._client, name, refuse)
    for step in (1, 2, 3):
        tracker.log(step, {"a": 1.0, "b": 2.0})
    tracker.close()
    assert said == [
        "track[0]: mlflow fails: refused as ever; training goes on, metrics.jsonl has all metrics",
        "track[0]: mlflow: 6 records were not sent; metrics.jsonl and samples/ have them",
    ]


def test_a_slow_server_does_not_hold_training_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = tracker_in(folder)
    sizes: list[int] = []
    answered = threading.Event()

    def slow(_: str, metrics: list[Any]) -> None:
        assert answered.wait(60)
        sizes.append(len(metrics))

    monkeypatch.setattr(tracker._client, "log_batch", slow)
    for step in range(2500):
        tracker.log(step, {"a": 1.0})
    assert sizes == []  # all is logged before the first answer
    answered.set()
    tracker.close()
    assert sum(sizes) == 2500
    assert max(sizes) == 1000  # as much as MLflow takes at once


def test_a_dead_server_at_the_start_is_one_line(tmp_path: Path, port: int) -> None:
    uri = f"http://me:secret@127.0.0.1:{port}"
    config = config_of({"kind": "mlflow", "tracking_uri": uri})
    with pytest.raises(UserError, match=rf"track\[0\]: mlflow cannot use http://127.0.0.1:{port}: ") as raised:
        build_trackers(Tracked(config, tmp_path, -1, {}, print))
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)
    assert not (tmp_path / "tracking.json").exists()


@pytest.mark.parametrize("missing", ["mlflow", "sqlalchemy"])
def test_absence_is_one_line_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        UserError, match=rf"track\[0\]: mlflow needs {missing}, which is not installed; pip install 'quintet\[mlflow\]'"
    ):
        tracker_in(tmp_path)


@given(st.text())
def test_any_name_becomes_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    usable = usable_name(name)
    _validate_metric_name(usable)
    _validate_param_name(usable)
    assert usable_name(usable) == usable


NAMES = st.text(st.sampled_from("aAb_c+#/.-é%"), max_size=6) | st.text() | st.text("x/", min_size=240, max_size=300)


@given(st.lists(NAMES, unique=True))
@example(["validation/c#/loss", "validation/c+/loss", "validation/c_/loss", "Rare", "rare", "", "_"])
@example(["x" * 300, "x" * 301, "..A", "__A"])
def test_different_names_stay_different_also_without_capitals(names: list[str]) -> None:
    from mlflow.utils.validation import _validate_metric_name

    for clean, length in ((usable_name, 250), (file_name, 100)):
        usable = UsableNames(clean)
        found = [usable.of(name) for name in names]
        assert len({one.casefold() for one in found}) == len(names)
        assert [usable.of(name) for name in names] == found
        for one in found:
            assert 0 < len(one) <= length
            if clean is usable_name:
                _validate_metric_name(one)
            else:
                assert not set(one) & set('<>:"/\\|?*')
                assert one.isascii()
                assert one.isprintable()


def test_labels_that_mlflow_would_call_the_same_keep_their_curves(folder: Path) -> None:
    tracker, store = tracker_in(folder), client(f"sqlite:///{folder}/mlflow.db")
    names = ["validation/c#/loss", "validation/c+/loss", "validation/C#/loss", "validation/perplexity"]
    tracker.log(1, dict(zip(names, [1.0, 2.0, 3.0, math.inf], strict=True)))
    tracker.log(2, dict(zip(reversed(names), [8.0, 6.0, 5.0, 4.0], strict=True)))
    tracker.close()
    found = only_run(store)
    curves = {tuple(history(store, found.info.run_id, key)) for key in found.data.metrics if key.endswith("/loss")}
    assert curves == {((1, 1.0), (2, 4.0)), ((1, 2.0), (2, 5.0)), ((1, 3.0), (2, 6.0))}
    first = history(store, found.info.run_id, "validation/perplexity")[0]
    assert math.isnan(first[1])  # and not the largest float


def test_names_and_values_that_mlflow_takes_stay_as_they_are() -> None:
    assert usable_name("validation/a b-c.d:é_1/loss") == "validation/a b-c.d:é_1/loss"
    values = {"a": {"b": [1, {"c": None}], "d": []}, "e": True, "f": "x", "g": 1e-5, "h": {}}
    assert parameters(values) == {
        "a.b.0": "1",
        "a.b.1.c": "null",
        "a.d": "[]",
        "e": "true",
        "f": "x",
        "g": "1e-05",
        "h": "{}",
    }


def test_long_values_are_cut_as_mlflow_wants() -> None:
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, MAX_PARAM_VAL_LENGTH

    found = parameters({"a" * 300: "b" * 7000})
    [(key, value)] = found.items()
    assert value == "b" * MAX_PARAM_VAL_LENGTH
    assert len(key) == MAX_ENTITY_KEY_LENGTH
    assert key.startswith("a" * 240)  # a digest follows, so that long names stay different


def test_the_files_of_a_dialect_are_artifacts(folder: Path) -> None:
    (folder / "original/model").mkdir(parents=True)
    (folder / "original/model/gpt.yaml").write_bytes(b"n_layer: 4\r\n")
    tracker_in(folder).close()
    store = client(f"sqlite:///{folder}/mlflow.db")
    found = store.download_artifacts(only_run(store).info.run_id, "original/model/gpt.yaml", str(folder))
    assert Path(found).read_bytes() == b"n_layer: 4\r\n"
