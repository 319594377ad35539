"""A plan for devices: the memory, traffic and time of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.plan.cost import Plan, make_plan, size
from quintet.plan.fit import Change, find_change
from quintet.plan.machine import Machine, this_machine
from quintet.plan.simulation import Simulation, simulate

_NOT_HERE = "what the model needs is not on this machine"


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: ``compute`` of its operations, ``within`` and ``across`` of sending in and between nodes.

    A step takes at least the longer of computing and sending, if they overlap, and at most their sum.
    """

    compute: float
    within: float
    across: float

    @property
    def least(self) -> float:
        """Seconds if computing and sending overlap."""
        return max(self.compute, self.within + self.across)

    @property
    def most(self) -> float:
        """Seconds if nothing overlaps."""
        return self.compute + self.within + self.across


def step_time(found: Simulation, machine: Machine) -> StepTime:
    """Return the time of a step of ``found`` on ``machine``."""
    wire = {across: sum(entry.wire for entry in found.traffic if entry.across == across) for across in (False, True)}
    return StepTime(found.seconds, wire[False] / machine.node_bandwidth, wire[True] / machine.bandwidth)


@dataclass(frozen=True)
class DevicePlan:
    """A ``plan`` with the ``simulation`` of a step on ``machine``.

    If the run does not fit, ``change`` is the change of settings with which it fits, None if no change was found.
    ``closest`` is, of the changes that were tried and do not fit, the one with the lowest peak of memory.
    """

    plan: Plan
    machine: Machine
    simulation: Simulation
    time: StepTime
    change: Change | None = None
    closest: Change | None = None

    @property
    def fits(self) -> bool:
        """True if the peak is within the memory of a device."""
        return self.simulation.memory.peak <= self.machine.memory

    @property
    def utilisation(self) -> tuple[float, float]:
        """The highest and the lowest model FLOPs utilisation: the FLOPs that the model needs by the devices' peak."""
        peak = self.machine.peak_flops * self.machine.devices
        assert self.plan.flops_per_token is not None, "no device is planned for without the model's cost"
        flops = self.plan.flops_per_token * self.plan.tokens_per_step
        return flops / self.time.least / peak, flops / self.time.most / peak

    def lines(self) -> list[str]:
        """Return the plan for devices as lines of text."""
        found, machine = self.simulation, self.machine
        memory, shape = found.memory, found.shape
        first = f"{machine.devices:,}"
        if machine.devices > machine.local:
            first += f" ({machine.local} a machine)"
        return [
            f"devices      {first}, {size(machine.memory)} each, in {found.precision}",
            f"parallel     {found.strategy.kind} ({found.strategy.reason}), "
            f"{shape.accumulation} × {shape.micro_batch_size} samples each a step",
            f"each holds   {size(memory.parameters)} parameters + {size(memory.gradients)} gradients + "
            f"{size(memory.optimizer)} optimizer" + (f", {size(memory.host)} on the host" if memory.host else ""),
            f"activations  {size(memory.activations)} of a micro-batch",
            f"peak         {size(memory.peak)}, {memory.peak / machine.memory:.0%} of a device"
            + (f", {size(memory.gathered)} of it gathered weights" if memory.gathered else ""),
            *self._advice(),
            *(
                f"each step    {entry.collective} of {size(entry.bytes)} in {entry.calls:,} calls, {entry.processes:,} "
                f"ranks {'across machines' if entry.across else 'of a machine'}: {size(entry.wire)} sent by each"
                for entry in found.traffic
                if entry.bytes >= 1000  # the norm of the gradient and the loss are a few numbers
            ),
            *self._time(),
        ]

    def _advice(self) -> list[str]:
        if self.fits:
            return []
        if self.change is not None:
            return [f"too large    {self.change} fits: {size(self.change.peak)} at the peak"]
        tried = f"; {self.closest} comes to {size(self.closest.peak)}" if self.closest else ""
        return [f"too large    no setting that was tried fits{tried}: take more devices or a shorter sequence"]

    def _time(self) -> list[str]:
        machine, time, steps = self.machine, self.time, self.plan.steps
        high, low = self.utilisation
        sent = time.within + time.across
        between = f"{_duration(time.least)} to {_duration(time.most)}" if sent else _duration(time.compute)
        if steps is None:
            total = "not known"
        elif sent:
            total = f"{_duration(steps * time.least)} to {_duration(steps * time.most)}"
        else:
            total = _duration(steps * time.compute)
        shares = f"{high:.0%} to {low:.0%}" if sent else f"{high:.0%}"
        return [
            f"step         {between}: {_duration(time.compute)} computing, {_duration(sent)} sending "
            f"({_duration(time.within)} in machines, {_duration(time.across)} across)",
            f"run          {total}, {shares} of {machine.devices * machine.peak_flops:.3g} FLOP/s",
            f"assumed      {machine.peak_flops:.3g} FLOP/s a device, of which matrix products reach "
            f"{machine.utilisation:.0%}; memory {size(machine.memory_bandwidth)}/s"
            + (
                f", {size(machine.node_bandwidth)}/s in a machine, {size(machine.bandwidth)}/s across"
                if machine.devices > 1
                else ""
            ),
        ]

    def values(self) -> dict[str, Any]:
        """Return the plan for JSON, in bytes, seconds and FLOPs."""
        found, steps, time = self.simulation, self.plan.steps, self.time
        whole = None if steps is None else {"least": steps * time.least, "most": steps * time.most}
        advice = {} if self.fits else {"change": self.change and asdict(self.change)}
        return {
            "machine": asdict(self.machine),
            "parallel": {"kind": found.strategy.kind, "reason": found.strategy.reason},
            "micro_batch_size": found.shape.micro_batch_size,
            "accumulation": found.shape.accumulation,
            "precision": found.precision,
            "memory": asdict(found.memory),
            "fits": self.fits,
            **advice,
            "traffic": [asdict(entry) | {"wire": entry.wire} for entry in found.traffic],
            "flops": found.flops,
            "step_seconds": asdict(self.time) | {"least": self.time.least, "most": self.time.most},
            "run_seconds": whole,
        }


def plan_devices(config: RunConfig, plan: Plan, machine: Machine, precision: str) -> DevicePlan:
    """Return the plan of ``config`` for each device of ``machine``; ``plan`` is that of the whole run.

    Raises UserError if ``config`` cannot be spread over the devices, or its model depends on the values of the data.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    try:
        assert plan.vocab_size is not None, "no device is planned for without the vocabulary"
        found = simulate(config, plan.vocab_size, machine, precision)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"model: cannot be simulated: it computes with numbers that depend on the data ({error.func})"
        ) from error
    change = closest = None
    if found.memory.peak > machine.memory:
        change, closest = find_change(config, plan.vocab_size, machine, found)
    return DevicePlan(plan, machine, found, step_time(found, machine), change, closest)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    for unit, length in (("min", 60), ("h", 3600)):
        if seconds < 120 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 86400:,.3g} days"


@dataclass(frozen=True)
class RunPlan:
    """The cost of a run: ``run`` whatever its devices, and ``devices`` for those that it is planned for, None if that
    failed for the reason ``note``."""

    run: Plan
    devices: DevicePlan | None
    note: str | None = None

    @classmethod
    def of(cls, config: RunConfig, machine: Machine) -> RunPlan:
        """Plan the run of ``config`` for ``machine``, which need not exist here."""
        run = make_plan(config)
        if run.parameters is None:
            return cls(run, None, _NOT_HERE)
        precision = config.train.precision if config.train.precision != "auto" else "bf16"
        return cls(run, plan_devices(config, run, machine, precision))

    @classmethod
    def here(cls, config: RunConfig) -> RunPlan:
        """Plan the run of ``config`` for this device, or only the whole run if the device cannot be planned for."""
        run = make_plan(config)
        if run.parameters is None:
            return cls(run, None, _NOT_HERE)
        try:
            machine, compute = this_machine(config)
            return cls(run, plan_devices(config, run, machine, compute.precision))
        except UserError as error:
            return cls(run, None, str(error))

    @property
    def parameters(self) -> int:
        """The parameters of the model. Raises UserError if they need something that is not on this machine."""
        if self.run.parameters is None:
            raise UserError(*self.run.missing)
        return self.run.parameters.total

    def lacking(self, absent: Sequence[str]) -> RunPlan:
        """Return the plan with the lines ``absent`` added to what is missing on this machine."""
        return replace(self, run=replace(self.run, missing=[*absent, *self.run.missing]))

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        return [*self.run.lines(), *(self.devices.lines() if self.devices else [f"not simulated: {self.note}"])]

    def values(self) -> dict[str, Any]:
        """Return every figure, as `quintet plan --json` prints them."""
        return {**asdict(self.run), "simulation": self.devices and self.devices.values()}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    __repr__ = __str__
