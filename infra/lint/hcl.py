"""`python -m infra.lint.hcl FOLDER`: what `terraform validate` says of names, for modules whose providers are not here.

Every variable, local, resource, module output that is named is declared; every variable is typed, described and used,
every output described; what a module is given is what it takes.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hcl2

_REFERENCES = re.compile(
    r"\b(?:(?P<kind>var|local|module)\.(?P<name>\w+)(?:\.(?P<output>\w+))?"
    r"|(?P<resource>(?:data\.|ephemeral\.)?(?:aws|http)_?\w*\.\w+))"
)
_COMMENTS = re.compile(r"^\s*(#|//).*$", re.MULTILINE)
_META = {"source", "version", "providers", "count", "for_each", "depends_on"}


@dataclass
class Module:
    """One folder of `.tf` files: what it declares, and its text without comments."""

    folder: Path
    text: str = ""
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    locals: set[str] = field(default_factory=set)
    resources: set[str] = field(default_factory=set)


def read(folder: Path) -> Module:
    """Return a folder's module; a file that is no HCL raises with its name."""
    module = Module(folder)
    for file in sorted(folder.glob("*.tf")):
        text = file.read_text()
        try:
            content = hcl2.loads(text)
        except Exception as error:
            raise ValueError(f"{file}: expected HCL, found {error}") from error
        module.text += _COMMENTS.sub("", text)
        for kind, found in (("variable", module.variables), ("output", module.outputs), ("module", module.modules)):
            for block in content.get(kind, []):
                found.update({_plain(name): body for name, body in block.items()})
        for block in content.get("locals", []):
            module.locals.update(_plain(name) for name in block if not name.startswith("__"))
        for kind, prefix in (("resource", ""), ("data", "data."), ("ephemeral", "ephemeral.")):
            for block in content.get(kind, []):
                module.resources.update(f"{prefix}{_plain(t)}.{_plain(n)}" for t, named in block.items() for n in named)
    return module


def faults(module: Module) -> Iterator[str]:
    """Give what is wrong in a module, a sentence each."""
    used = set()
    for found in _REFERENCES.finditer(module.text):
        kind, name = found["kind"], found["name"]
        if kind == "var":
            used.add(name)
            if name not in module.variables:
                yield f"var.{name} is not declared"
        elif kind == "local" and name not in module.locals:
            yield f"local.{name} is not declared"
        elif kind == "module":
            if name not in module.modules:
                yield f"module.{name} is not declared"
            elif found["output"] not in read(_source(module, name)).outputs:
                yield f"module.{name} has no output {found['output']}"
        elif found["resource"] and "." in found["resource"] and found["resource"] not in module.resources:
            yield f"{found['resource']} is not declared"
    for name, body in module.variables.items():
        yield from (f"variable {name} has no {part}" for part in ("type", "description") if part not in body)
        if name not in used:
            yield f"variable {name} is not used"
    yield from (f"output {name} has no description" for name, out in module.outputs.items() if "description" not in out)
    for name, body in module.modules.items():
        wanted = read(_source(module, name)).variables
        given = {key for key in body if not key.startswith("__")} - _META
        missing = {key for key, variable in wanted.items() if "default" not in variable} - given
        yield from (f"module {name} takes no {key}" for key in sorted(given - set(wanted)))
        yield from (f"module {name} is not given {key}" for key in sorted(missing))


def _source(module: Module, name: str) -> Path:
    return (module.folder / _plain(module.modules[name]["source"])).resolve()


def _plain(value: Any) -> str:
    """Return a string as it was meant; the parser gives an attribute as a list of one."""
    return str(value[0] if isinstance(value, list) else value).strip('"')


def main(root: str) -> int:
    """Check every module below a folder and return the exit code."""
    folders = sorted({file.parent for file in Path(root).rglob("*.tf") if ".terraform" not in file.parts})
    wrong = [f"{folder}: {fault}" for folder in folders for fault in dict.fromkeys(faults(read(folder)))]
    print("\n".join(wrong) or f"{len(folders)} modules")
    return 1 if wrong or not folders else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
