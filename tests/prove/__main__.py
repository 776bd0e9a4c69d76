"""`python -m tests.prove NAME|all`, then optionally the rows to run: `python -m tests.prove flow search deploy`."""

import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


def main(name: str, only: Sequence[str] = ()) -> int:
    """Run one loop, or all, and return the exit status: 1 where a bound was missed."""
    known = sorted(file.stem.removeprefix("prove_") for file in Path(__file__).parent.glob("prove_*.py"))
    if name not in (*known, "all"):
        print(f"no loop {name!r}; known: {', '.join(known)}")
        return 2
    # So that a loop stops its servers also when it is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = known if name == "all" else [name]
    results = [importlib.import_module(f"tests.prove.prove_{loop}").run(only) for loop in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "all", sys.argv[2:]))
