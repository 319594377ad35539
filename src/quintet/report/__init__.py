"""The results of one run or several, as tables, plots and pages.

- ``facts.py`` reads the facts of a run from its folder, finds the runs in a folder, and summarises each in one line
  (`quintet runs`).
- ``compare.py`` makes the tables of settings and figures of several runs (`quintet compare`).
- ``paired.py`` compares the losses of several models on the same samples or texts, with confidence intervals (the same
  command, unless `--recorded` is given). Nothing else here loads a model.
- ``page.py`` writes the HTML page of a run (`quintet report`) with the template ``page.html``; `_plots` in it lists
  the curves.
- ``plots.py`` draws curves for both, and ``samples.py`` reads the texts and music that a run wrote.

A new metric of a benchmark, of text or of music needs no entry here: tables show all metrics of these groups
(`MEASURED` in ``facts.py``) that the run's `metrics.jsonl` has.
"""
