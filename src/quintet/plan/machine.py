"""The machine that a plan is made for: so many devices, with so much memory and such speeds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quintet.errors import UserError

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for kind, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("KMGT", start=1)
}


@dataclass(frozen=True)
class Machine:
    """``devices`` in all, ``per_node`` of them in a machine, each with ``memory`` bytes.

    ``peak_flops`` is the FLOP/s of its matrix products in the run's precision, of which they reach ``utilisation``;
    ``memory_bandwidth``, ``node_bandwidth`` (to devices of its machine) and ``bandwidth`` (to those of others) are
    bytes a second and device. ``accelerator`` says that it is not a CPU.
    """

    devices: int
    per_node: int
    memory: int
    peak_flops: float
    utilisation: float
    memory_bandwidth: float
    node_bandwidth: float
    bandwidth: float
    accelerator: bool

    @property
    def local(self) -> int:
        """Devices of one machine that are used."""
        return min(self.devices, self.per_node)


def parse_bytes(text: str, where: str) -> int:
    """Bytes of ``text`` such as 80GiB, 900MB, 3e9. Raises UserError, which names ``where``."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    units = {name.lower(): value for name, value in _UNITS.items()}
    try:
        size = int(float(found[1]) * units[found[2].lower()]) if found else 0
    except (ValueError, KeyError):
        size = 0
    if size <= 0:
        raise UserError(f"{where}: {text!r} is no size; write a number and a unit, as 80GiB or 900MB")
    return size
