"""The Ray Serve side: a router in front, one variant per live version, a profiler and a recorder behind.

Path of a request: parse, check against the variant's contract, micro-batch, variant, reply; then, off the
path, profile and log in bounded queues. Trouble with the log never fails a prediction.
"""
