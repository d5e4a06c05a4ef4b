"""Structure of the package, from its source: who imports whom, and effects of an import."""

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

# Packages that only one command imports, and the extra that this command requires.
EXTRA_OF = {"serving": "serve"}

# A package (or module of emu_jax) imports only from itself and from lower levels. Add new packages here.
LEVELS = (
    ("errors", "hardware", "pixels", "typing"),
    ("bounds",),
    ("config", "io", "sharding", "waiting"),
    ("layers", "losses", "reporting"),
    ("data", "diffusion", "models"),
    ("checkpoints",),
    ("convert",),
    ("generation",),
    ("evaluation", "serving", "training"),
    ("chat", "compile_analysis", "demo", "scaling"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

OTHER_FRAMEWORKS = ("torch", "torchvision", "tensorflow", "transformers", "diffusers")  # never imported at load time
LINE_LIMIT = 400


@dataclass(frozen=True)
class Import:
    """One import of the dotted `module` in `file`, when the file is loaded or (not `at_load`) inside a function."""

    file: Path
    line: int
    module: str
    at_load: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports(path: Path) -> Iterator[Import]:
    """Yield every import of a file, including those in functions. `from a import b` is `a.b`."""

    def walk(node: ast.AST, at_load: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(path, child.lineno, alias.name, at_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path.relative_to(ROOT)}:{child.lineno} has a relative import"
                yield from (Import(path, child.lineno, f"{child.module}.{a.name}", at_load) for a in child.names)
            else:
                in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, at_load and not in_function and not typing_only)

    yield from walk(parse(path), True)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def package_of(path: Path) -> str:
    """Return `data` for emu_jax/data/batch.py, and `losses` for emu_jax/losses.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("emu_jax", "configs")


TRANSFORMERS_CODE = PACKAGE / "convert" / "transformers_format"  # copied into exports, never imported by emu_jax
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != TRANSFORMERS_CODE)
PACKAGES = sorted({package_of(path) for path in SOURCES} - {"__init__"})
IMPORTS = [i for path in SOURCES for i in imports(path)]
# Without emu_jax/__init__.py, the public entry point: it imports from all levels, but only on first use.
INTERNAL = [i for i in IMPORTS if i.module.startswith("emu_jax.") and package_of(i.file) != "__init__"]


def test_every_package_has_a_level() -> None:
    assert [name for name in PACKAGES if name not in LEVEL] == []


@pytest.mark.parametrize("name", PACKAGES)
def test_imports_point_to_lower_levels(name: str) -> None:
    wrong = []
    for found in INTERNAL:
        target = found.module.split(".")[1]
        if package_of(found.file) == name and target != name and LEVEL.get(target, -1) >= LEVEL[name]:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_only_commands_import_the_demo() -> None:
    wrong = [str(i) for i in INTERNAL if i.module.split(".")[1] == "demo" and package_of(i.file) not in ("demo", "cli")]
    assert not wrong, "\n".join(wrong)


def test_entry_point_imports_nothing_at_load_time() -> None:
    at_load = [i.module for i in imports(PACKAGE / "__init__.py") if i.at_load]
    assert [module for module in at_load if module.split(".")[0] not in sys.stdlib_module_names] == []


def test_other_frameworks_are_not_imported_at_load_time() -> None:
    wrong = [str(i) for i in IMPORTS if i.module.split(".")[0] in OTHER_FRAMEWORKS and i.at_load]
    assert not wrong, "\n".join(wrong)


def test_only_file_input_and_output_uses_torch() -> None:
    users = {(package_of(i.file), i.module.split(".")[0]) for i in IMPORTS}
    assert {user for user in users if user[1] in OTHER_FRAMEWORKS} == {("io", "torch")}


def test_data_does_not_use_flax() -> None:
    wrong = [str(i) for i in IMPORTS if package_of(i.file) == "data" and i.module.split(".")[0] in ("flax", "optax")]
    assert not wrong, "\n".join(wrong)


def test_layers_are_stacked_in_one_file() -> None:
    """`nn.scan` and `nn.remat` are used only in layers/stack.py."""
    transforms = re.compile(r"\bnn\.(scan|remat|checkpoint)\(")
    users = [str(path.relative_to(PACKAGE)) for path in SOURCES if transforms.search(path.read_text())]
    assert users == ["layers/stack.py"]


def test_mesh_axes_are_named_only_by_sharding() -> None:
    """Other packages name logical axes. Only sharding/ and configs/ map them to mesh axes."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        if package_of(path) != "sharding"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and node.value in ("fsdp", "tensor")
    ]
    assert not wrong, "\n".join(wrong)


def test_one_function_chooses_the_attention() -> None:
    """Only layers/attention.py imports the implementations of attention."""
    modules = ("emu_jax.layers.fused_attention", "emu_jax.layers.dot_product_attention")
    users = {str(i.file.relative_to(PACKAGE)) for i in INTERNAL if i.module.startswith(modules)}
    assert users == {"layers/attention.py"}


SHAPE_TYPES = ("Bool", "Float", "Int", "Shaped", "UInt8")
SHAPES_CHECKED = ("layers", "losses", "models")


def unchecked_functions(path: Path) -> Iterator[str]:
    """Yield the functions of a file that annotate shapes without `@typechecked`."""

    def has_shape(annotation: ast.AST | None) -> bool:
        nodes = ast.walk(annotation) if annotation is not None else ()
        values = (node.value for node in nodes if isinstance(node, ast.Subscript))
        return any(isinstance(value, ast.Name) and value.id in SHAPE_TYPES for value in values)

    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef) and "typechecked" not in map(ast.unparse, node.decorator_list):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            if has_shape(node.returns) or any(has_shape(argument.annotation) for argument in arguments):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_shape_annotations_are_checked() -> None:
    wrong = [found for path in SOURCES if package_of(path) in SHAPES_CHECKED for found in unchecked_functions(path)]
    assert not wrong, "\n".join(wrong)


def test_every_library_is_declared() -> None:
    """Libraries imported at load time are dependencies; those imported in functions may be in an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=!~; ]", r, maxsplit=1)[0].lower().replace("_", "-") for r in requirements}

    base = names(project["dependencies"])
    extras = base.union(*map(names, project["optional-dependencies"].values()))
    at_load = {name: base | names(project["optional-dependencies"][extra]) for name, extra in EXTRA_OF.items()}
    distributions = metadata.packages_distributions()
    wrong = []
    for found in IMPORTS:
        top = found.module.split(".")[0]
        if top in sys.stdlib_module_names or is_ours(top):
            continue
        providers = {d.lower().replace("_", "-") for d in distributions.get(top, [top])}
        if not providers & (at_load.get(package_of(found.file), base) if found.at_load else extras):
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_configs_do_not_import_the_package() -> None:
    """A config is a page of values, or changes those of another config. Only configs/common.py imports the package."""
    paths = [path for path in sorted((ROOT / "configs").rglob("*.py")) if path.name != "common.py"]
    allowed = re.compile(r"(ml_collections|configs|__future__)(\.|$)")
    wrong = [str(i) for path in paths for i in imports(path) if not allowed.match(i.module)]
    assert not wrong, "\n".join(wrong)


def test_files_are_small_and_have_specific_names() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > LINE_LIMIT}
    assert long == {}
    assert [str(p) for p in SOURCES if re.search(r"\b(utils?|helpers?|misc)\b", str(p.relative_to(ROOT)))] == []


IMPORT_SCRIPT = """
import importlib, os, pkgutil, sys

import emu_jax

assert "jax" not in sys.modules, "import emu_jax imports JAX"

# The libraries first: their effects at import are not ours.
for name in {libraries!r}:
    importlib.import_module(name)
import absl.flags, jax
from jax._src import xla_bridge

environment, settings = dict(os.environ), dict(jax.config.values)
for module in pkgutil.walk_packages(emu_jax.__path__, "emu_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)

frameworks = [name for name in {frameworks!r} if name in sys.modules]
assert not frameworks, f"{{frameworks}} are imported"
assert environment == dict(os.environ), "imports change the environment"
changed = {{key: value for key, value in jax.config.values.items() if settings.get(key, value) != value}}
assert not changed, f"imports change the settings of JAX: {{changed}}"
flags = [name for name in absl.flags.FLAGS.flags_by_module_dict() if name.startswith(("emu_jax", "configs"))]
assert not flags, f"imports define flags: {{flags}}"
assert not xla_bridge.backends_are_initialized(), "imports start a device"
"""


def test_imports_have_no_side_effects() -> None:
    """Importing any module starts no device, sets no flag or environment variable, and loads no other framework."""
    libraries = sorted(
        {i.module.rpartition(".")[0] or i.module for i in IMPORTS if i.at_load and not is_ours(i.module)}
    )
    script = IMPORT_SCRIPT.format(libraries=libraries, frameworks=OTHER_FRAMEWORKS)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
