"""Terraform: form, the parts that need no provider, and the rest as text (the providers are not downloaded here)."""

from infra.lint.check import Check

_INSTALL = "Terraform 1.11 or later: https://developer.hashicorp.com/terraform/install"
_PLAN = "-chdir=infra/terraform/modules/plan"


def checks() -> list[Check]:
    """Return the checks of this subject."""
    quiet = {"CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", "TF_CLI_ARGS": "-no-color"}
    return [
        Check(
            "terraform fmt",
            ("terraform", "fmt", "-check", "-diff", "-recursive", "infra/terraform"),
            _INSTALL,
            variables={"CHECKPOINT_DISABLE": "1"},
        ),
        Check("terraform validate: plan", ("terraform", _PLAN, "validate"), _INSTALL, variables=quiet),
        Check("terraform test: plan", ("terraform", _PLAN, "test"), _INSTALL, variables=quiet),
        Check("terraform: declared, described, used", ("python", "-m", "infra.lint.hcl", "infra/terraform")),
        Check(
            "checkov: Terraform",
            ("checkov", "--quiet", "--compact", "--skip-download", "--framework", "terraform", "-d", "infra/terraform"),
        ),
    ]
