"""The cost of a run, computed from its run file before any time is spent on a device.

- ``cost.py`` has `make_plan`: parameters, FLOPs, memory and disk, whatever the devices.
- ``device_plan.py`` plans a run on given devices: it simulates a step, computes the time from the speeds of the
  machine, and searches for a change of settings if the run does not fit.
- ``machine.py`` has the devices: their number, memory and speeds, as given or as measured here.
- ``simulation.py`` takes the step of one rank with the code that trains, on tensors without numbers. For this,
  ``fake_world.py`` simulates the process group, and ``counting.py`` counts memory, traffic and FLOPs by operation.
- ``fit.py`` searches for the change of settings with which the run fits.

No table here lists kinds. A simulated step runs the code of each part of the model; where nothing is simulated, the
figures come from `quintet.model.count` and `quintet.train.sizes`.
"""

from quintet.plan.cost import Plan, make_plan

__all__ = ["Plan", "make_plan"]
