"""The cost of a run, computed from its run file before anything is spent."""

from quintet.plan.cost import Plan, make_plan

__all__ = ["Plan", "make_plan"]
