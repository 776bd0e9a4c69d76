"""The product on Kubernetes, at a terminal.

python -m infra.kubernetes write | check
python -m infra.kubernetes secrets [--local] | kubectl create -f -
python -m infra.kubernetes render OVERLAY [--image IMAGE] [--first] | kubectl apply -f -
"""

import argparse
import os
import sys
from collections.abc import Sequence

from forge_core.deployment.ray_pods import manifest_yaml
from forge_core.errors import ForgeError
from infra.kubernetes.generated import ROOT, generated_files
from infra.kubernetes.render import render
from infra.kubernetes.secrets import GENERATED, secret_manifests


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.kubernetes", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="write the files that follow from others")
    commands.add_parser("check", help="tell which of them are not as they would be written")
    made = commands.add_parser("secrets", help="print Secrets with fresh values; a variable of the name gives one")
    made.add_argument("--local", action="store_true", help="with keys of the object store inside the cluster")
    chosen = commands.add_parser("render", help="print an overlay for the cluster of the current kubectl context")
    chosen.add_argument("overlay")
    chosen.add_argument("--image", default="", help="name and tag, or digest, in place of mlops-forge:VERSION")
    chosen.add_argument("--first", action="store_true", help="do not ask the cluster for what it serves")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ForgeError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command == "secrets":
        given = {key: os.environ[key] for keys in GENERATED.values() for key in keys if os.environ.get(key)}
        sys.stdout.write("---\n".join(map(manifest_yaml, secret_manifests(local=options.local, given=given))))
        return 0
    if options.command == "render":
        sys.stdout.write(render(options.overlay, image=options.image, live=not options.first))
        return 0
    stale = {path: text for path, text in generated_files().items() if not path.is_file() or path.read_text() != text}
    for path, text in stale.items():
        if options.command == "write":
            path.write_text(text)
        told = "written" if options.command == "write" else "is not as `python -m infra.kubernetes write` writes it"
        sys.stdout.write(f"{path.relative_to(ROOT)} {told}\n")
    return 1 if stale and options.command == "check" else 0


if __name__ == "__main__":
    sys.exit(main())
