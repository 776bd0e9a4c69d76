"""Batch scoring: every row of a Parquet data set through a version's faster form, on all cores, part by part.

A part is a run of rows of one file. A process of Ray Data's reads it, checks it against the version's contract, scores
it and writes it; between processes go numbers only. A part is there whole or not at all, so that a scoring that was cut
short goes on with the parts that are missing.
"""
