"""The guide's door to `forge_core.experiments.ab_testing`."""

from forge_core.experiments.ab_testing import ABTestManager, Assigned, Experiment, get_ab_test_manager

__all__ = ["ABTestManager", "Assigned", "Experiment", "get_ab_test_manager"]
