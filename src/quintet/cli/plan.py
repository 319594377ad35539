"""`quintet plan`: the cost of a run, before it starts."""

from typing import Annotated

import typer

from quintet import api
from quintet.cli.inputs import AsJson, Inputs, as_options, echo, fail, in_words, load
from quintet.files import to_json

Devices = Annotated[
    int | None, typer.Option("--devices", min=1, help="plan for this number of devices, which need not be here")
]
Memory = Annotated[str, typer.Option("--device-memory", help="memory of a device, as 80GiB")]
PerNode = Annotated[int, typer.Option("--devices-per-node", min=1, help="devices of a node")]
PeakFlops = Annotated[float, typer.Option("--peak-flops", help="FLOP/s of a device in the run's precision", min=1.0)]
Utilisation = Annotated[
    float, typer.Option("--utilisation", help="share of it that matrix products reach", min=0.01, max=1.0)
]
MemoryBandwidth = Annotated[float, typer.Option("--memory-bandwidth", help="bytes/s of a device's memory", min=1.0)]
NodeBandwidth = Annotated[
    float, typer.Option("--node-bandwidth", help="bytes/s that a device sends to others of its node", min=1.0)
]
Bandwidth = Annotated[float, typer.Option("--bandwidth", help="bytes/s that a device sends to other nodes", min=1.0)]


_OF_DEVICES = (
    "device_memory",
    "devices_per_node",
    "peak_flops",
    "utilisation",
    "memory_bandwidth",
    "node_bandwidth",
    "bandwidth",
)


def plan(
    context: typer.Context,
    inputs: Inputs,
    as_json: AsJson = False,
    devices: Devices = None,
    device_memory: Memory = "80GiB",
    devices_per_node: PerNode = 8,
    peak_flops: PeakFlops = 989e12,
    utilisation: Utilisation = 0.7,
    memory_bandwidth: MemoryBandwidth = 3.35e12,
    node_bandwidth: NodeBandwidth = 450e9,
    bandwidth: Bandwidth = 50e9,
) -> None:
    """Print what a run costs: parameters, FLOPs, tokens, steps, memory, time and disk. Nothing is trained.

    A step is simulated without numbers: on this device, or with --devices on a number of devices that need not be here.
    The other options describe these; their defaults are an H100 with 400 Gbit/s per device between nodes.
    """
    given = [name for name in _OF_DEVICES if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if devices is None and given:
        fail(f"--{given[0].replace('_', '-')}: describes the devices of --devices; give their number, or leave it out")
    with as_options("device_memory"):
        result = api.plan(
            load(inputs, may_lack=True),
            devices=devices,
            device_memory=device_memory,
            devices_per_node=devices_per_node,
            peak_flops=peak_flops,
            utilisation=utilisation,
            memory_bandwidth=memory_bandwidth,
            node_bandwidth=node_bandwidth,
            bandwidth=bandwidth,
        )
    if as_json:
        echo(to_json(result.values(), indent=2))
        return
    from quintet.track.console import Reporter

    reporter = Reporter(words=in_words)
    for line in result.lines():
        reporter.say(line)
