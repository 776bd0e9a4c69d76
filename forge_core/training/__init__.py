"""From a dataset version to a candidate: search, fit, evaluation, compilation.

Every step takes ids and leaves its result at the storage URL under a name that follows from its inputs, so a
step that was cut is repeated and one that was finished is found again.
"""
