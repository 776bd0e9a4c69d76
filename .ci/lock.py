"""Write requirements.lock: pip-compile's answer, and beside each pin that has a reason, the reason."""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

root = Path(__file__).resolve().parent.parent
reasons = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["forge"]["pins"]

with tempfile.TemporaryDirectory() as folder:
    answer = Path(folder) / "answer.txt"
    subprocess.run(
        [
            *(sys.executable, "-m", "piptools", "compile", "--quiet", "--extra=dev", "--strip-extras", "--no-header"),
            *("--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"),
            *(f"--output-file={answer}", "pyproject.toml"),
        ],
        cwd=root,
        check=True,
    )
    pins = answer.read_text().splitlines()

lines = ["# Every package, pinned. Made by `make lock` from pyproject.toml, where the reasons stand too."]
for pin in pins:
    name, _, version = pin.partition("==")
    if version:
        # A machine may offer a local build (torch's +cpu); the lock names the public version that it satisfies.
        pin = f"{name}=={re.sub(r'[+].*', '', version)}"
        if name in reasons:
            pin = f"{pin}  # {reasons[name]}"
        lines.append(pin)
(root / "requirements.lock").write_text("\n".join(lines) + "\n")
