"""The simulation of a step against steps that are really taken, and against closed forms."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import load_script, run_config
from tests.processes import run_several

from quintet.config.model import TransformerConfig
from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.model import build_model
from quintet.plan.device_plan import step_time
from quintet.plan.fit import changed, find_change
from quintet.plan.machine import Machine, parse_bytes
from quintet.plan.simulation import Simulation, Traffic, sample_depths, simulate

SIZES = ("parameters", "gradients", "optimizer")
VOCABULARY, WIDTH = 500, 64
SHARED = {"sharing": {"low_rank": ["feedforward"], "same": ["attention_output"], "first_blocks": 1, "last_blocks": 1}}


SCRIPT = "benchmarks/plan_memory.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    return load_script(SCRIPT)


def measure_all(cases: list[str]) -> None:
    load_script(SCRIPT).measure_all(cases)


def measured(bench: Any, folder: Path, cases: list[str]) -> dict[str, dict[str, Any]]:
    """Return what the first of real processes measures in ``cases``, which have the same number of processes."""
    (processes,) = {bench.CASES[case][0] for case in cases}
    done = run_several(processes, folder, dict(os.environ), measure_all, cases)
    assert all(one.returncode == 0 for one in done), done
    return json.loads(done[0].stdout.splitlines()[-1])


def config(
    layers: int = 2, devices: int = 1, parallel: str = "none", model: dict[str, Any] | None = None, **train: Any
) -> RunConfig:
    return run_config(
        data={"sequence_length": 64},
        model={"layers": layers, "width": WIDTH, **(model or {})},
        train={"steps": 10, "batch_size": 4 * devices, **train},
        parallel={"kind": parallel},
    )


def machine(devices: int, per_node: int = 8, memory: int = 2**36, *, accelerator: bool = True) -> Machine:
    return Machine(devices, per_node, memory, 1e12, 0.5, 1e11, 1e10, 1e9, accelerator)


def simulated(run: RunConfig, on: Machine, **named: Any) -> Simulation:
    return simulate(run, VOCABULARY, on, run.train.precision, **named)


@pytest.mark.parametrize(
    "cases",
    [
        ["none", "none, each block again"],
        pytest.param(["fsdp, 3 passes, each block again"], marks=pytest.mark.slow),
        pytest.param(["none, shared", "none, bytes, each block again"], marks=pytest.mark.slow),
        pytest.param(["fsdp, shared"], marks=pytest.mark.slow),
        pytest.param(["none, bf16", "none, 4 passes"], marks=pytest.mark.slow),
        pytest.param(["ddp", "fsdp", "fsdp, bf16", "fsdp, grad_op"], marks=pytest.mark.slow),
        pytest.param(["fsdp, 3 passes, reduced once", "hsdp, 2 × 1 ranks, 3 passes"], marks=pytest.mark.slow),
        pytest.param(["fsdp, 4 ranks", "hsdp, 2 × 2 ranks"], marks=pytest.mark.slow),
    ],
    ids=[
        "one process",
        "two processes",
        "parts",
        "shared by two",
        "more of one",
        "more of two",
        "passes of two",
        "four processes",
    ],
)
def test_memory_and_collectives_are_those_of_a_real_step(bench: Any, tmp_path: Path, cases: list[str]) -> None:
    for case, real in measured(bench, tmp_path, cases).items():
        told = bench.predict(case)
        assert {name: told[name] for name in SIZES} == {name: real[name] for name in SIZES}, case
        assert told["calls"] == real["calls"], case
        for name in ("all-gather", "reduce-scatter"):
            assert told["sent"][name] == real["sent"][name], case
        assert told["activations"] == pytest.approx(real["activations"], rel=0.01), case
        # On a busy machine gloo's threads may still hold what a pass reduced: gradients of 4 bytes, and half of them
        # as the result.
        held = 0 if case.startswith("none") else 6 * bench.weights(case)
        assert 0.98 * told["peak"] <= real["peak"] <= 1.02 * told["peak"] + held, case


@pytest.mark.slow
def test_with_several_passes_a_rank_keeps_its_part_of_the_gradient_alone(bench: Any, tmp_path: Path) -> None:
    """Two real processes: between two passes each holds half of the gradient in fp32, or all of it."""
    each, last = "fsdp, 3 passes", "fsdp, 3 passes, reduced once"
    real, whole = measured(bench, tmp_path, [each, last]), 4 * bench.weights(each)
    assert real[each]["between"] == pytest.approx(whole / 2, rel=0.01)
    assert real[last]["between"] == pytest.approx(whole, rel=0.01)
    assert real[each]["calls"]["reduce-scatter"] == 3 * real[last]["calls"]["reduce-scatter"]
    assert 0.4 * whole < bench.predict(last)["peak"] - bench.predict(each)["peak"] < 0.6 * whole


@pytest.mark.parametrize("devices", [8, 512])
def test_fsdp_sends_what_the_closed_form_says_over_any_number_of_ranks(devices: int) -> None:
    run = config(devices=devices, parallel="fsdp")
    found = simulated(run, machine(devices))
    assert isinstance(run.model, TransformerConfig)
    model = build_model(run.model, VOCABULARY, 64, 0, meta=True)
    padded = {
        name: 4 * -(-weight.shape[0] // devices) * devices * weight[0].numel()
        for name, weight in model.named_parameters()
    }
    outside = sum(size for name, size in padded.items() if not name.startswith("blocks."))
    sent = {entry.collective: entry for entry in found.traffic}
    # Each block twice, in the forward and in the backward pass, what is outside of them once.
    assert sent["all-gather"].bytes == 2 * sum(padded.values()) - outside
    assert sent["reduce-scatter"].bytes == sum(padded.values())
    assert sent["all-gather"].across == (devices > 8)
    assert found.memory.gradients == sum(padded.values()) // devices


def test_hsdp_sends_within_a_machine_and_a_part_across() -> None:
    found = simulated(config(devices=16, parallel="hsdp"), machine(16))
    within = {entry.collective: entry for entry in found.traffic if not entry.across}
    (across,) = (entry for entry in found.traffic if entry.across and entry.processes == 2)
    assert within["reduce-scatter"].processes == within["all-gather"].processes == 8
    assert (across.collective, across.bytes * 8) == ("all-reduce", within["reduce-scatter"].bytes)


@pytest.mark.parametrize(
    ("layers", "parallel", "devices", "train"),
    [
        (11, "fsdp", 4, {}),
        pytest.param(15, "none", 1, {"model": SHARED}, marks=pytest.mark.slow),
        pytest.param(18, "fsdp", 2, {"model": SHARED, "activation_checkpointing": 2}, marks=pytest.mark.slow),
        pytest.param(25, "none", 1, {}, marks=pytest.mark.slow),
        pytest.param(25, "ddp", 2, {}, marks=pytest.mark.slow),
        pytest.param(25, "fsdp", 4, {"micro_batch_size": 1}, marks=pytest.mark.slow),
        pytest.param(25, "none", 1, {"activation_checkpointing": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_deep_model_is_what_its_first_blocks_say(
    layers: int, parallel: str, devices: int, train: dict[str, Any]
) -> None:
    run = config(layers, devices, parallel, **train)
    assert sample_depths(run)
    short, whole = simulated(run, machine(devices)), simulated(run, machine(devices), whole=True)
    assert short.memory == whole.memory
    assert [entry.bytes for entry in short.traffic] == [entry.bytes for entry in whole.traffic]
    assert short.flops == whole.flops


def test_auto_is_chosen_by_the_memory_of_the_devices_that_are_named() -> None:
    run = config(devices=16, parallel="auto")
    kinds = [simulated(run, machine(16, memory=size)).strategy.kind for size in (2**30, 2**20, 2**18)]
    assert kinds == ["ddp", "hsdp", "fsdp"]


@pytest.mark.parametrize(
    ("run", "devices", "message"),
    [
        (config(devices=1, parallel="ddp"), 3, "4 samples cannot be spread evenly over 3 processes"),
        (config(devices=2), 2, "parallel.kind: none is for one device"),
    ],
)
def test_what_cannot_be_spread_is_said(run: RunConfig, devices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        simulated(run, machine(devices))


def test_the_change_that_is_proposed_fits_and_the_run_without_it_does_not() -> None:
    run = config(layers=3, batch_size=16)
    free = simulated(run, machine(1)).memory.peak
    tight = machine(1, memory=int(0.7 * free))
    change, _ = find_change(run, VOCABULARY, tight, simulated(run, tight))
    assert change
    assert change.peak <= tight.memory < free
    assert simulated(changed(run, change.settings), tight).memory.peak == change.peak
    none = machine(1, memory=1000)
    assert find_change(run, VOCABULARY, none, simulated(run, none)) == (None, None)


def test_gradients_that_are_kept_whole_are_the_first_thing_to_change() -> None:
    run = config(devices=4, parallel="fsdp", micro_batch_size=2)
    run = changed(run, {"parallel.reduce_passes": "last"})
    tight = machine(4, memory=simulated(run, machine(4)).memory.peak - 1)
    change, _ = find_change(run, VOCABULARY, tight, simulated(run, tight))
    assert change
    assert change.settings == {"parallel.reduce_passes": "each"}


def test_less_memory_than_the_weights_take_asks_for_spreading_them() -> None:
    run = config(devices=4, parallel="ddp")
    found = simulated(run, machine(4))
    tight = machine(4, memory=found.memory.parameters + found.memory.optimizer)
    change, _ = find_change(run, VOCABULARY, tight, found)
    assert change
    assert change.settings["parallel.kind"] == "fsdp"


def test_the_time_of_a_step_follows_from_the_stated_speeds() -> None:
    found = simulated(config(devices=16, parallel="hsdp"), machine(16))
    time = step_time(found, machine(16))
    wire = {True: 0.0, False: 0.0}
    for entry in found.traffic:
        twice = 2 if entry.collective == "all-reduce" else 1
        wire[entry.across] += twice * entry.bytes * (1 - 1 / entry.processes)
    assert (time.within, time.across) == pytest.approx((wire[False] / 1e10, wire[True] / 1e9))
    assert time.least == max(time.compute, time.within + time.across)
    # No operation is faster than its products at half the peak.
    assert time.compute >= found.flops / (1e12 * 0.5)


def test_flops_are_the_models_and_those_that_checkpointing_repeats() -> None:
    from quintet.train.sizes import training_flops

    run = config(layers=3)
    assert isinstance(run.model, TransformerConfig)
    plain, again = (
        simulated(changed(run, {"train.activation_checkpointing": how}), machine(1)).flops for how in ("none", 1)
    )
    model = training_flops(run, VOCABULARY).total * run.batch.tokens
    attention = 3 * 4 * WIDTH * 64 * run.batch.tokens  # all blocks' forward attention, unmasked
    # Causal kernels do half of the convention's three products of attention and compute the weights once more.
    assert plain == model - 3 * attention + attention * 7 / 4
    head = 2 * VOCABULARY * WIDTH * run.batch.tokens
    # The last product of a block is not computed again: nothing in its backward pass needs it.
    last = run.model.layers * 2 * run.model.hidden * WIDTH * run.batch.tokens
    assert again - plain == (model - 3 * attention) / 3 - head - last + attention / 2


@given(st.integers(2, 4096), st.integers(1, 10**12))
def test_a_ring_sends_less_than_all_and_twice_that_to_reduce(processes: int, size: int) -> None:
    gather, reduce = (
        Traffic(name, processes, across=False, calls=1, bytes=size) for name in ("all-gather", "all-reduce")
    )
    assert size / 2 <= gather.wire < size
    assert reduce.wire == 2 * gather.wire


@given(st.integers(1, 9999))
def test_sizes_are_read(count: int) -> None:
    assert parse_bytes(f"{count}GiB", "x") == count * 2**30
    assert parse_bytes(f"{count} MB", "x") == count * 10**6
    assert parse_bytes(str(count), "x") == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "80GiBs", "1.2.3MB", "0"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(UserError, match=r"--device-memory: .* is no size"):
        parse_bytes(text, "--device-memory")
