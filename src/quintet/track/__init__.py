"""Trackers, which get the metrics and samples of a run: a protocol, one class per kind, and all of them as one."""
