"""Trackers, which get the metrics and samples of a run: a protocol, one class for each kind, and all of them as one.

- ``tracker.py`` has the protocol `Tracker`, and the facts about a run that a tracker gets.
- ``composite.py`` has the table of kinds (`TRACKERS`), builds the trackers of a run, and passes everything to each.
- ``tensorboard.py``, ``wandb.py`` and ``mlflow.py`` have one kind each; its config is in `quintet.config.track`.
- ``jsonl.py`` has the tracker of every run, in the run's folder: it writes metrics and samples, and reads them again.
- ``console.py`` prints the lines of a run.
- ``background.py`` checks that a server can be reached, sends to it in a thread, and reports failures.
- ``names.py`` makes names that a tracker or a file system accepts, and keeps the ids of a run in its trackers.
"""
