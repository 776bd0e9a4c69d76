"""Prefect flows: orchestration only. Each step is a function of `forge_core`; ids cross between steps."""
