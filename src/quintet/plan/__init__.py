"""The cost of a run, computed from its run file before any time is spent on a device."""

from quintet.plan.cost import Plan, make_plan

__all__ = ["Plan", "make_plan"]
