"""`quintet plan` as its user meets it, for devices that are not here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quintet.plan.cost import size

Command = Callable[..., tuple[int, str, str]]
CLUSTER = Path(__file__).resolve().parents[2] / "examples/cluster.yaml"
RUN = """
name: small
data: {sources: [{kind: python_stdlib}], sequence_length: 64}
tokenizer: {kind: byte}
model: {layers: 2, width: 32, attention: {heads: 2}}
train: {steps: 100, batch_size: 64, device: cpu, precision: fp32}
"""


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1536, "1.54 KB"),
        (999_400, "999 KB"),
        (999_600, "1 MB"),
        (3_140_000, "3.14 MB"),
        (7_250_000_000, "7.25 GB"),
        (81_000_000_000_000, "81 TB"),
        (1_234_000_000_000_000_000, "1,234 PB"),
    ],
)
def test_bytes_have_the_unit_in_which_they_are_shortest(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("quintet.plan.here.measure_peak", lambda compute: 1e11)
    file = tmp_path / "run.yaml"
    file.write_text(RUN)
    return str(file)


def test_the_cluster_example_is_planned_for_a_thousand_devices(command: Command) -> None:
    code, out, err = command("plan", str(CLUSTER), "--devices", "1024", "--device-memory", "80GiB", "--json")
    assert code == 0, err
    found = json.loads(out)["rehearsal"]
    weights = 6_738_415_616
    own = -(-weights // 8)
    assert found["parallel"]["kind"] == "hsdp"
    assert found["fits"]
    assert found["memory"]["gradients"] == 4 * own
    assert found["memory"]["optimizer"] == pytest.approx(8 * own, rel=1e-5)
    across = [entry for entry in found["traffic"] if entry["across"] and entry["bytes"] > 1000]
    assert [(entry["collective"], entry["processes"], entry["bytes"]) for entry in across] == [
        ("all-reduce", 128, 4 * own)
    ]
    assert found["step_seconds"]["least"] <= found["step_seconds"]["most"]


def test_one_device_here_is_planned_without_being_named(command: Command, run: str) -> None:
    code, out, err = command("plan", run)
    assert code == 0, err
    assert all(word in out for word in ("activations  ", "peak  ", "step  ", "none (there is one process)"))
    code, out, _ = command("plan", run, "--json")
    found = json.loads(out)["rehearsal"]
    assert (found["machine"]["devices"], found["machine"]["peak_flops"]) == (1, 1e11)
    assert found["memory"]["peak"] > sum(found["memory"][name] for name in ("parameters", "optimizer", "activations"))


def test_a_device_that_is_not_here_leaves_the_rest_of_the_plan(command: Command, run: str) -> None:
    code, out, _ = command("plan", run, "train.device=mps")
    assert code == 0
    assert "not rehearsed: train.device: this machine has no mps device" in out
    assert "parameters   " in out


def test_what_is_too_large_says_which_setting_fits(command: Command, run: str) -> None:
    code, out, err = command("plan", run, "--devices", "2", "--device-memory", "2MB")
    assert code == 0, err
    assert "too large    " in out
    assert " fits: " in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "7"], "64 samples cannot be spread evenly over 7 processes"),
        (["--devices", "2", "--device-memory", "many"], "--device-memory: 'many' is no size"),
    ],
)
def test_a_mistake_is_one_line(command: Command, run: str, options: list[str], message: str) -> None:
    code, _, err = command("plan", run, *options)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_what_describes_devices_that_are_not_asked_for_is_refused(command: Command) -> None:
    code, _, err = command("plan", str(CLUSTER), "--peak-flops", "1e12")
    assert (code, err) == (
        2,
        "error: --peak-flops: describes the devices of --devices; give their number, or leave it out\n",
    )
