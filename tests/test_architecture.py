"""The plan of the house, held by reading the source: who may import whom, and what an import may not do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "emu_jax"

# Room -> floor. A room may import what lies on lower floors and itself; rooms on floors 0 and 3 may also use their
# neighbours, as long as no two rooms need each other. A new room is given its floor here.
FLOORS = {
    "errors": 0,
    "typing": 0,
    "config": 0,
    "hardware": 0,
    "io": 0,
    "sharding": 0,
    "layers": 1,
    "models": 2,
    "diffusion": 2,
    "losses": 2,
    "data": 2,
    "reporting": 2,
    "training": 3,
    "checkpoints": 3,
    "convert": 3,
    "generation": 3,
    "evaluation": 3,
    "serving": 3,
    "scaling": 3,
    "compile_analysis": 3,
    "demo": 4,
    "cli": 5,
    "__main__": 5,
}
SOCIABLE_FLOORS = (0, 3, 5)

FOREIGN = ("torch", "torchvision", "tensorflow", "transformers", "diffusers")  # never at import
LINE_LIMIT = 400


@dataclass(frozen=True)
class Import:
    """One import statement: `file` imports the dotted `module`, when it is loaded or (not `at_load`) in a function."""

    file: Path
    line: int
    module: str
    at_load: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports(path: Path) -> Iterator[Import]:
    """Every import in the file, those in functions and under `if TYPE_CHECKING` too; `from a import b` gives `a.b`."""

    def walk(node: ast.AST, at_load: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(path, child.lineno, alias.name, at_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path.relative_to(ROOT)}:{child.lineno} imports relatively"
                yield from (Import(path, child.lineno, f"{child.module}.{a.name}", at_load) for a in child.names)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, at_load and not inside and not typing_only)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def room(path: Path) -> str:
    """The room that a file of the package lies in: `data` of emu_jax/data/batch.py, `losses` of emu_jax/losses.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("emu_jax", "configs")


SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted({room(path) for path in SOURCES} - {"__init__"})
IMPORTS = [i for path in SOURCES for i in imports(path)]
# The package's own `__init__` is the front door: it reaches into rooms, and only when asked.
INWARD = [i for i in IMPORTS if i.module.startswith("emu_jax.") and room(i.file) != "__init__"]


def test_every_room_has_its_floor() -> None:
    assert [name for name in ROOMS if name not in FLOORS] == []


@pytest.mark.parametrize("name", ROOMS)
def test_imports_point_down(name: str) -> None:
    wrong = []
    for found in INWARD:
        target = found.module.split(".")[1]
        if room(found.file) != name or target == name or target not in FLOORS:
            continue
        here, there = FLOORS[name], FLOORS[target]
        if there > here or (there == here and here not in SOCIABLE_FLOORS):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_no_two_rooms_need_each_other() -> None:
    needs: dict[str, set[str]] = {name: set() for name in ROOMS}
    for found in INWARD:
        needs[room(found.file)].add(found.module.split(".")[1])
    reach = {name: set(targets) - {name} for name, targets in needs.items()}
    for _ in ROOMS:  # as many rounds as the longest path can have steps
        for targets in reach.values():
            targets |= {far for near in targets for far in reach.get(near, ())}
    assert [name for name in ROOMS if name in reach[name]] == []


def test_the_front_door_is_lazy() -> None:
    at_load = [str(i) for i in imports(PACKAGE / "__init__.py") if i.at_load]
    assert [line for line in at_load if "emu_jax." in line or "jax" in line.split("imports ")[1]] == []


def test_no_other_framework_is_imported_with_the_package() -> None:
    wrong = [str(i) for i in IMPORTS if i.module.split(".")[0] in FOREIGN and i.at_load]
    assert not wrong, "\n".join(wrong)


def test_torch_is_reached_for_only_to_read_and_write_its_files() -> None:
    reached = {(room(i.file), i.module.split(".")[0]) for i in IMPORTS if i.module.split(".")[0] in FOREIGN}
    assert reached <= {("io", "torch")}


def test_data_is_free_of_flax() -> None:
    wrong = [str(i) for i in IMPORTS if room(i.file) == "data" and i.module.split(".")[0] in ("flax", "optax")]
    assert not wrong, "\n".join(wrong)


def test_layers_are_stacked_in_one_place() -> None:
    """`nn.scan` and `nn.remat` stand in layers/stack.py alone (DESIGN 2)."""
    lifted = re.compile(r"\bnn\.(scan|remat|checkpoint)\(")
    users = [str(path.relative_to(PACKAGE)) for path in SOURCES if lifted.search(path.read_text())]
    assert users == ["layers/stack.py"]


def test_mesh_axes_are_named_in_one_place() -> None:
    """Modules name logical axes; which mesh axis these lie on is for sharding/ and configs/ alone (DESIGN 4)."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if room(path) != "sharding"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in ("fsdp", "tensor")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_library_is_declared() -> None:
    """What a module imports is a dependency in pyproject.toml; what a function imports may be in an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=!~; ]", r, maxsplit=1)[0].lower().replace("_", "-") for r in requirements}

    base = names(project["dependencies"])
    extras = base.union(*map(names, project["optional-dependencies"].values()))
    homes = metadata.packages_distributions()
    wrong = []
    for found in IMPORTS:
        top = found.module.split(".")[0]
        if top in sys.stdlib_module_names or is_ours(top):
            continue
        offered = {d.lower().replace("_", "-") for d in homes.get(top, [top])}
        if not offered & (base if found.at_load else extras):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_configs_know_only_ml_collections_and_their_common_part() -> None:
    """A run's config is a page of values; only configs/common.py, which fills in the defaults, knows the package."""
    paths = [path for path in sorted((ROOT / "configs").rglob("*.py")) if path.name != "common.py"]
    allowed = re.compile(r"(ml_collections|configs\.common|__future__)(\.|$)")
    wrong = [str(i) for path in paths for i in imports(path) if not allowed.match(i.module)]
    assert not wrong, "\n".join(wrong)


def test_files_are_small_and_named_for_what_they_hold() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > LINE_LIMIT}
    assert long == {}
    assert [str(p) for p in SOURCES if re.search(r"\b(utils?|helpers?|misc)\b", str(p.relative_to(ROOT)))] == []


QUIET_IMPORT = """
import importlib, os, pkgutil, sys

import emu_jax

assert "jax" not in sys.modules, "import emu_jax brings JAX along"

# The libraries first: what they do to the process when they are imported is theirs.
for name in {libraries!r}:
    importlib.import_module(name)
import absl.flags, jax
from jax._src import xla_bridge

environment, settings = dict(os.environ), dict(jax.config.values)
for module in pkgutil.walk_packages(emu_jax.__path__, "emu_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

foreign = [name for name in {foreign!r} if name in sys.modules]
assert not foreign, f"imports bring {{foreign}} along"
assert environment == dict(os.environ), "imports change the environment"
changed = {{key: value for key, value in jax.config.values.items() if settings.get(key, value) != value}}
assert not changed, f"imports change the settings of JAX: {{changed}}"
flags = [name for name in absl.flags.FLAGS.flags_by_module_dict() if name.startswith(("emu_jax", "configs"))]
assert not flags, f"imports define flags: {{flags}}"
assert not xla_bridge.backends_are_initialized(), "imports start a device"
"""


def test_importing_touches_nothing() -> None:
    """No device, flag, environment variable or other framework, whichever modules are imported."""
    libraries = sorted(
        {i.module.rpartition(".")[0] or i.module for i in IMPORTS if i.at_load and not is_ours(i.module)}
    )
    script = QUIET_IMPORT.format(libraries=libraries, foreign=FOREIGN)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
