"""Images, compose and shell scripts."""

from infra.lint.check import Check, tracked

_COMPOSE = "infra/docker/docker-compose.yml"


def checks() -> list[Check]:
    """Return the checks of this subject."""
    found = [
        Check("hadolint: images", ("hadolint", *tracked("infra/docker/Dockerfile*"))),
        Check(
            "compose specification",
            ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", _COMPOSE),
        ),
        Check(
            "checkov: images",
            ("checkov", "--quiet", "--compact", "--skip-download", "--framework", "dockerfile", "-d", "infra/docker"),
        ),
        Check("yamllint", ("yamllint", "--strict", "-c", "infra/lint/yamllint.yml", *tracked("*.yml", "*.yaml"))),
    ]
    found.append(Check("shellcheck", ("shellcheck", ".ci/run", "infra/docker/build", *tracked("*.sh"))))
    return found
