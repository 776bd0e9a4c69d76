"""Terraform: form, the parts that need no provider, and the rest as text."""

from infra.lint.check import ROOT, Check

_FOLDER = ROOT / "infra" / "terraform"


def checks() -> list[Check]:
    """Return the checks of this subject."""
    return []
