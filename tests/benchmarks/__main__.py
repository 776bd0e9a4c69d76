"""`python -m tests.benchmarks NAME|all`."""

import importlib
import sys
from pathlib import Path


def main(name: str) -> int:
    """Run one benchmark, or all, and return the exit status: 1 where a target was missed."""
    known = sorted(file.stem.removeprefix("bench_") for file in Path(__file__).parent.glob("bench_*.py"))
    if name not in (*known, "all"):
        print(f"no benchmark {name!r}; known: {', '.join(known)}")
        return 2
    chosen = known if name == "all" else [name]
    results = [importlib.import_module(f"tests.benchmarks.bench_{bench}").run() for bench in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "all"))
