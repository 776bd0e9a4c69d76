"""`python -m infra.lint [WORD]`: run every check, or those whose name has the word; exits with 1 when one failed."""

import os
import sys

from infra.lint import containers, kubernetes, terraform, watching, workflows
from infra.lint.check import Check, run, tell

SUBJECTS = (containers, kubernetes, watching, terraform, workflows)


def main(word: str = "") -> int:
    """Run the checks one after another and return the exit code."""
    chosen: list[Check] = [check for subject in SUBJECTS for check in subject.checks() if word in check.name]
    if not chosen:
        print(f"expected a word of a check's name, found {word!r}")
        return 2
    return tell([run(check) for check in chosen], strict=bool(os.environ.get("CI")))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
