"""Watching a model at work: what came in, what went out, and what turned out to be true.

A *window* is one profiling interval of one version. It holds counts on the grid that the version's reference fixed,
on which every decision is made, and a whylogs profile, for people to look at and exchange. Both add up, so a window is
written in parts by whoever saw the rows. Three questions are asked of windows and of the prediction log: are the
inputs and outputs distributed as in the reference (drift), are the values themselves sound (missing, unseen, out of
range: repaired by a person, never learnt), and are predictions still right (quality, once labels arrive). A drift alarm
is information; loss of quality is a reason to retrain.
"""
