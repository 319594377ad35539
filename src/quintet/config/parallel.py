"""How the work of a run is spread over devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quintet.config.part import Part, key


class AutoParallelConfig(Part):
    """Let Quintet choose; with one device there is nothing to distribute."""

    kind: Literal["auto"] = key("auto", "chosen from the devices at hand, and said")


class NoParallelConfig(Part):
    """One process on one device."""

    kind: Literal["none"] = key(..., "one process, one device")


ParallelConfig = Annotated[AutoParallelConfig | NoParallelConfig, Field(discriminator="kind")]
