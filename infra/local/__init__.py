"""The local stack: Prefect, MLflow, Ray and a worker, side by side on 127.0.0.1.

`processes` and `ports` know the operating system, `environment` and `members` say what runs and how,
`supervisor` keeps it running, `stack` is what people and tests call.
"""
