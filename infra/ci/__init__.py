"""What continuous integration does beyond lint and tests, each a Make target that works at a terminal too.

`validate_model` trains on the sample and gates; `smoke` asks a deployed API; `notice` tells which secrets are absent.
"""
