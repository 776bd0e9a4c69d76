"""One check: a program, what it is given, and where the program comes from when it is absent."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Check:
    """A command that exits with 0 when the files are right.

    Attributes
    ----------
    name : str
        What is checked, as a person reads it.
    command : tuple of str
        Program and arguments; the programs of this virtual environment come first.
    install : str
        How the program is got where it is absent; empty for those of infra/requirements-lint.txt.
    folder : Path
        Where the command runs.
    variables : mapping of str to str
        Variables that only this command gets.
    """

    name: str
    command: tuple[str, ...]
    install: str = ""
    folder: Path = ROOT
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a check went: `passed`, `failed` or `absent` (its program is), what it printed, and the seconds it took."""

    check: Check
    verdict: str
    printed: str
    seconds: float


def run(check: Check) -> Outcome:
    """Return how a check went; a program that hangs has failed."""
    begun = time.monotonic()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    program = shutil.which(check.command[0], path=path)
    if program is None:
        return Outcome(check, "absent", check.install or "pip install -r infra/requirements-lint.txt", 0.0)
    try:
        done = subprocess.run(
            [program, *check.command[1:]],
            cwd=check.folder,
            env={**os.environ, "PATH": path, **check.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        verdict, printed = ("passed" if done.returncode == 0 else "failed"), done.stdout
    except subprocess.TimeoutExpired as error:
        verdict, printed = "failed", f"not done within {error.timeout:.0f} s"
    return Outcome(check, verdict, printed.strip(), time.monotonic() - begun)


def tracked(*patterns: str) -> tuple[str, ...]:
    """Return the files of the checkout that match, new ones too, those that git ignores not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", "--", *patterns]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return tuple(file for file in found if (ROOT / file).is_file())


def tell(outcomes: Sequence[Outcome], *, strict: bool) -> int:
    """Print a line for each check, then what the failed ones said; return the exit code.

    Parameters
    ----------
    outcomes : sequence of Outcome
        In the order in which they are shown.
    strict : bool
        Whether a program that is absent is a failure: in CI it is, on a laptop it is named.
    """
    marks = {"passed": "✓", "failed": "✗", "absent": "✗" if strict else "–"}
    for outcome in outcomes:
        told = f"absent: {outcome.printed}" if outcome.verdict == "absent" else f"{outcome.seconds:.1f} s"
        print(f"  {marks[outcome.verdict]} {outcome.check.name:<52} {told}")
    wrong = [o for o in outcomes if o.verdict == "failed" or (strict and o.verdict == "absent")]
    for outcome in wrong:
        print(f"\n{outcome.check.name}: {' '.join(outcome.check.command)[:200]}\n{outcome.printed}")
    passed = sum(o.verdict == "passed" for o in outcomes)
    print(f"\n{passed} of {len(outcomes)} checks passed, {len(wrong)} failed")
    return 1 if wrong else 0
