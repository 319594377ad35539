from __future__ import annotations

import html
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import Command, load_script, run_config, wait_until

from quintet.config.describe import plain
from quintet.config.load import load_run_config
from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.track.composite import CompositeTracker, build_trackers
from quintet.track.jsonl import read_metrics
from quintet.track.tracker import Tracked
from quintet.track.wandb import WandbTracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
OFFLINE = {"kind": "wandb", "arguments": {"project": "tests", "mode": "offline"}}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tracker sets in the environment is gone after the test."""
    limits = ("WANDB_FINISH_TIMEOUT", "WANDB_FINISH_TIMEOUT_RAISES", "WANDB_INIT_TIMEOUT")
    for name in (*limits, "WANDB_CACHE_DIR", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def config_of(*track: dict[str, Any]) -> RunConfig:
    return run_config(train={"steps": 3}, track=list(track))


def tracked(folder: Path, *track: dict[str, Any], first_step: int = -1, say: Callable = print) -> Tracked:
    return Tracked(config_of(*track), folder, first_step, {"device": "cpu"}, say)


def wandb_tracker(run: Tracked, index: int = 0) -> WandbTracker:
    config = run.config.track[index]
    assert config.kind == "wandb"
    return WandbTracker(run, config, f"track[{index}]")


def records(file: Path) -> list[Any]:
    """The records of an offline file: a LevelDB log of wandb's own protocol buffers after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record, found = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        rest = 32768 - at % 32768
        if rest < 7:  # the end of a block that holds no header
            at += rest
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            one = Record()
            one.ParseFromString(record)
            found.append(one)
            record = b""
    return found


def offline_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)


def whole_records(file: Path) -> list[Any]:
    """The records when the last one is there: wandb's own process writes them after the run has ended here."""
    wait_until(lambda: bool(found := records(file)) and found[-1].HasField("exit"))
    return records(file)


def items_of(some: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in some}


def contents(file: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]], dict[str, Any], Any]:
    """Config, history by step, summary, and the run's own record of an offline file."""
    config: dict[str, Any] = {}
    history: dict[int, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    run = None
    for record in whole_records(file):
        if record.HasField("run"):
            run = run or record.run
            config |= items_of(record.run.config.update)
        config |= items_of(record.config.update)
        summary |= items_of(record.summary.update)
        if record.HasField("history"):
            history.setdefault(record.history.step.num, {}).update(items_of(record.history.item))
    return config, history, summary, run


def metrics_by_step(folder: Path) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for record in read_metrics(folder / "metrics.jsonl"):
        found.setdefault(int(record["step"]), {}).update({k: v for k, v in record.items() if k != "step"})
    return found


def test_the_offline_file_has_config_metrics_texts_and_the_checkpoint(train: Callable[..., str]) -> None:
    train(
        train={"steps": 4, "batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 2},
        model={},
        evaluate={"every": 2},
        sample={"prompts": ["the <b>"], "max_tokens": 4},
        track=[{"kind": "tensorboard"}, OFFLINE],
    )
    folder = Path("runs/tiny")
    [file] = offline_files(folder)
    config, history, summary, run = contents(file)
    system = config.pop("system")
    config.pop("_wandb")
    assert config == plain(load_run_config([folder / "run.yaml"]).config)
    assert system["device"] == "cpu"
    assert {"torch", "python", "quintet"} <= system.keys()
    assert (run.project, run.display_name) == ("tests", "tiny")
    assert list(json.loads((folder / "tracking.json").read_text()).values()) == [run.run_id]
    measured = metrics_by_step(folder)
    assert sorted(measured) == [1, 2, 3, 4]
    for step in (2, 4):
        assert {name: history[step][name] for name in measured[step]} == measured[step]
    assert sorted(history) == [2, 4]
    written = (folder / "samples/step-000002.txt").read_text().removeprefix("--- sample 0\n").removesuffix("\n")
    page = file.parent / "files" / history[2]["sample 0/path"]
    assert html.escape(written) in page.read_text(encoding="utf-8")
    assert summary["checkpoint"] == str((folder / "checkpoints/step-000004").resolve())


def test_a_continued_run_is_the_same_run(train: Callable[..., str]) -> None:
    for steps in (2, 4):
        train(
            train={"steps": steps, "batch_size": 4, "precision": "fp32", "device": "cpu", "log_every": 1},
            model={},
            track=[OFFLINE],
        )
    first, second = (contents(file) for file in offline_files(Path("runs/tiny")))
    assert first[3].run_id == second[3].run_id
    assert (sorted(first[1]), sorted(second[1])) == ([1, 2], [3, 4])
    assert (first[0]["train"]["steps"], second[0]["train"]["steps"]) == (2, 4)


def test_what_the_server_has_is_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = wandb_tracker(tracked(tmp_path, OFFLINE))
    monkeypatch.setattr(type(tracker._run), "starting_step", property(lambda _: 4))
    for step in (3, 4):
        tracker.log(step, {"loss": 1.0})
        tracker.text(step, "sample 0", "text")
    tracker.close()
    [file] = offline_files(tmp_path)
    assert sorted(contents(file)[1]) == [4]


VALIDATION, TRAINING = {"validation/loss"}, {"train/loss"}


@pytest.mark.parametrize(
    ("there", "known", "expected"),
    [
        (3, {}, {4: VALIDATION, 5: TRAINING}),
        (4, {}, {5: VALIDATION | TRAINING}),
        (4, {"validation/loss": 1.7}, {5: VALIDATION | TRAINING}),
        (4, {"validation/loss": 1.5}, {5: TRAINING}),  # sent, and killed before that was noted
        (5, {}, {}),
    ],
)
def test_what_a_kill_kept_from_being_measured_is_sent_once(
    there: int, known: dict[str, float], expected: dict[int, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on after step 4, whose validation is due, and the server has the steps up to ``there``."""
    from wandb.sdk.wandb_run import Run

    monkeypatch.setattr(Run, "starting_step", property(lambda _: there + 1))
    tracker = wandb_tracker(replace(tracked(tmp_path, OFFLINE, first_step=4), due=["validation"]))
    tracker._run.summary.update(known)
    tracker.log(4, {"validation/loss": 1.5})
    tracker.log(5, {"train/loss": 1.0})
    tracker.close()
    [file] = offline_files(tmp_path)
    assert {step: row.keys() & (VALIDATION | TRAINING) for step, row in contents(file)[1].items()} == expected


def test_what_is_given_goes_to_init_and_where_a_run_begins_only_the_first_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    calls: list[dict[str, Any]] = []
    init = wandb.init

    def spy(**arguments: Any) -> Any:
        calls.append(arguments)
        return init(**{name: value for name, value in arguments.items() if name != "fork_from"})

    spy.__signature__ = __import__("inspect").signature(init)  # type: ignore[attr-defined]
    monkeypatch.setattr(wandb, "init", spy)
    arguments = {"project": "p", "mode": "offline", "name": "another", "tags": ["a"], "fork_from": "x?_step=3"}
    for _ in range(2):
        wandb_tracker(tracked(tmp_path, {"kind": "wandb", "arguments": arguments})).close()
    assert {name: calls[0][name] for name in arguments} == arguments
    assert "id" not in calls[0]
    assert "fork_from" not in calls[1]
    kept = json.loads((tmp_path / "tracking.json").read_text())
    assert (calls[1]["id"], calls[1]["resume"]) == (kept["wandb /p"], "allow")
    assert {call["dir"] for call in calls} == {str(tmp_path.resolve())}


@pytest.mark.parametrize("verb", ["train", "check"])
def test_an_argument_that_init_does_not_know_is_refused_by_name(command: Command, tmp_path: Path, verb: str) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("a b c")
    file = tmp_path / "run.yaml"
    file.write_text(
        f"name: a\nruns_dir: {tmp_path}/runs\n"
        f"data: {{sources: [{{kind: text, path: {tmp_path}/corpus}}]}}\n"
        "train: {steps: 1}\n"
        "track: [{kind: tensorboard}, {kind: wandb, arguments: {projct: p, zzz: 1}}]\n"
    )
    code, _, err = command(verb, str(file))
    assert code == 2
    lines = err.strip().splitlines()
    assert "track[1].arguments.projct" in lines[0]
    assert "did you mean project?" in lines[0]
    assert "track[1].arguments.zzz" in lines[1]
    assert not (tmp_path / "runs").exists()


def test_the_config_is_the_run_file() -> None:
    with pytest.raises(ValueError, match="is always the whole run file"):
        config_of({"kind": "wandb", "arguments": {"config": {"a": 1}}})


def test_absence_is_one_line_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=r"track\[0\]: wandb needs wandb, which is not installed; pip install 'quintet\[wandb\]'"
    ):
        build_trackers(tracked(tmp_path, OFFLINE))


@pytest.mark.parametrize("arguments", [{"mode": "online"}, {"mode": "offlin"}])
def test_what_wandb_refuses_at_the_start_is_one_line(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError) as raised:
        build_trackers(tracked(tmp_path, OFFLINE, {"kind": "wandb", "arguments": arguments}))
    assert raised.value.problems[0].startswith("track[1]: wandb cannot start: ")
    assert "\n" not in str(raised.value)


@pytest.mark.slow  # wandb waits ten seconds for the reason
def test_a_dead_server_at_the_start_is_one_line(tmp_path: Path) -> None:
    settings = {"base_url": "http://127.0.0.1:9", "api_key": "a" * 40, "init_timeout": 1}
    with pytest.raises(UserError, match=r"track\[0\]: wandb cannot start: .*127.0.0.1:9") as raised:
        build_trackers(tracked(tmp_path, {"kind": "wandb", "arguments": {"mode": "online", "settings": settings}}))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "tracking.json").exists()


def test_a_failure_later_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    import wandb

    said: list[str] = []
    tracker = wandb_tracker(tracked(tmp_path, OFFLINE, say=said.append))
    tracker.log(1, {"loss": 1.0})
    assert said == []
    wandb.teardown()
    for step in (2, 3):
        tracker.log(step, {"loss": 1.0})
        tracker.text(step, "sample 0", "text")
    tracker.close()
    assert len(said) == 2
    assert said[0].startswith("track[0]: wandb fails: ")
    assert re.fullmatch(r"track\[0\]: wandb: [45] records were not sent; metrics.jsonl and samples/ have them", said[1])


def test_nothing_is_written_outside_of_the_run_folder(tmp_path: Path) -> None:
    run, home = tmp_path / "run", tmp_path / "home"
    for folder in (run, home):
        folder.mkdir()
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from quintet.config.schema import RunConfig\n"
        "from quintet.track.composite import CompositeTracker, build_trackers\n"
        "from quintet.track.tracker import Tracked\n"
        "config = RunConfig.model_validate({'name': 'a', 'data': {'sources': [{'kind': 'text', 'path': 'c'}]},\n"
        "    'train': {'steps': 1}, 'track': [{'kind': 'wandb', 'arguments': {'mode': 'offline'}}]})\n"
        "tracker = build_trackers(Tracked(config, Path(sys.argv[1]), -1, {}, print))\n"
        "tracker.text(1, 'sample 0', 'text')\n"
        "tracker.close()\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG"))}
    environment |= {"HOME": str(home), "TMPDIR": str(home)}
    subprocess.run([sys.executable, "-c", script, str(run), *sys.path], cwd=home, env=environment, check=True)
    assert len(offline_files(run)) == 1
    assert list(home.rglob("*")) == []


def test_the_files_of_a_dialect_are_files_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "original/model").mkdir(parents=True)
    (tmp_path / "original/model/gpt.yaml").write_bytes(b"n_layer: 4\r\n")
    wandb_tracker(tracked(tmp_path, OFFLINE)).close()
    [file] = offline_files(tmp_path)
    assert whole_records(file)
    assert (file.parent / "files/original/model/gpt.yaml").read_bytes() == b"n_layer: 4\r\n"


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_not_there_or_does_not_answer_is_known_soon_and_may_be_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr("quintet.track.background._CONNECTING_SECONDS", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:  # a connection, and nothing more
            server.listen(8)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        arguments = {"project": "tests", "settings": {"base_url": address}}
        optional = {"kind": "wandb", "required": False, "arguments": arguments}
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("NO_PROXY", "*")
        said: list[str] = []
        for name in "abc":
            (tmp_path / name).mkdir()
        found = build_trackers(tracked(tmp_path / "a", optional, say=said.append))
        assert [type(one).__name__ for one in found.trackers] == ["JsonlTracker"]
        assert len(said) == 1
        assert said[0].startswith("track[0]: wandb cannot start: ")
        assert said[0].endswith("; it is not required, and the run goes on without it")
        with pytest.raises(UserError, match=r"^track\[0\]: wandb cannot start: "):
            build_trackers(tracked(tmp_path / "b", optional | {"required": True}))
        mlflow = {"kind": "mlflow", "tracking_uri": address, "required": False}
        build_trackers(tracked(tmp_path / "c", mlflow, say=said.append))
        assert said[1].startswith("track[0]: mlflow cannot use http://127.0.0.1:")


@pytest.fixture(scope="module")
def servers() -> Any:
    """The servers that fail, of the campaign of faults."""
    return load_script("benchmarks/faults/servers.py")


def served_by(address: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The tracker whose server is at ``address``."""
    monkeypatch.setenv("NO_PROXY", "*")
    settings = {"base_url": address, "api_key": "0" * 40}
    return {"kind": "wandb", "arguments": {"project": "tests", "mode": "online", "settings": settings}}


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_server_that_answers_once_and_then_hangs_holds_no_start_up(
    servers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("quintet.track.background._STARTING_SECONDS", 2.0)
    with servers.failing_server(kind, "hang", 1, str(tmp_path)) as address:
        track = served_by(address, monkeypatch)
        if kind == "mlflow":
            track = {"kind": "mlflow", "tracking_uri": address}
        with pytest.raises(UserError, match="the server has not answered all requests within 2 s"):
            build_trackers(tracked(tmp_path, track))


def test_what_a_server_that_died_in_between_has_not_taken_is_told_with_how_to_send_it(
    servers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    wandb.teardown()  # it reads the environment once a process
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    said: list[str] = []
    with servers.failing_server("wandb", "die", 1000, str(tmp_path)) as address:
        found = build_trackers(tracked(tmp_path, served_by(address, monkeypatch), say=said.append))
        found.log(1, {"train/loss": 1.0})
    for step in (2, 3):  # the server is gone
        found.log(step, {"train/loss": 1.0})
        found.text(step, "sample 0", "text")
    found.close()
    assert len(said) == 1
    match = re.fullmatch(
        r"track\[0\]: wandb: the server has not taken all of 5 records within 2 s of the end; `wandb sync (.+)` sends "
        "them",
        said[0],
    )
    assert match is not None
    # What wandb would send lies there, once its process, which nobody waits for any more, has written it.
    [file] = Path(match[1]).glob("run-*.wandb")

    def steps() -> list[int]:
        return [one.history.step.num for one in records(file) if one.HasField("history")]

    wait_until(lambda: len(steps()) >= 3)
    assert steps() == [1, 2, 3]


def test_a_run_that_goes_back_does_without_a_server_that_is_gone(tmp_path: Path) -> None:
    said: list[str] = []
    composite = CompositeTracker(say=said.append)
    composite.start(tracked(tmp_path, say=said.append))
    composite.log(1, {"train/loss": 1.0})
    gone = {"kind": "mlflow", "tracking_uri": "http://127.0.0.1:9"}
    composite._tracked = tracked(tmp_path, gone, say=said.append)
    composite.go_back(0)
    composite.log(1, {"train/loss": 2.0})
    composite.close()
    assert [type(one).__name__ for one in composite.trackers] == ["JsonlTracker"]
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 2.0}]
    assert len(said) == 1
    assert said[0].startswith("track[0]: mlflow cannot use http://127.0.0.1:9: ")
    assert said[0].endswith("; the run goes on without it")


def test_a_library_that_hangs_does_not_hold_training_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    tracker = wandb_tracker(tracked(tmp_path, OFFLINE, say=said.append))
    freed = threading.Event()
    sent, waited = tracker._run.log, []

    def log(*arguments: Any, **named: Any) -> None:
        waited.append(freed.wait(60))
        sent(*arguments, **named)

    monkeypatch.setattr(tracker._run, "log", log)
    for step in range(200):
        tracker.log(step, {"train/loss": float(step)})
    assert waited == []  # the library still has the first record
    freed.set()
    tracker.close()
    assert said == []
    logged = [one for one in whole_records(offline_files(tmp_path)[-1]) if one.HasField("history")]
    assert len(logged) == 200
