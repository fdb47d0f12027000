"""Who may import whom, and what the run-time may not need: read from the sources, and proved by running."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Room -> folder. "package" is what lies in freeprompt/ itself: the editor, which puts the rooms together.
ROOMS = {
    "contract": "freeprompt/contract",
    "engines": "engines",
    "runtime": "runtime",
    "export": "export",
    "package": "freeprompt",
    "bench": "freeprompt/bench",
    "cli": "freeprompt/cli",
}
# Whom each may import besides itself.
ALLOWED = {
    "contract": set[str](),
    "engines": {"contract"},
    "runtime": {"contract"},
    "export": {"contract"},
    "package": {"contract", "engines", "runtime", "cli"},
    "bench": {"contract", "engines", "runtime", "package"},
    "cli": {"contract", "engines", "runtime", "export", "package", "bench"},
}
EXPORT_ONLY = {
    *("torch", "torchvision", "diffusers", "transformers", "accelerate"),
    *("onnx", "onnx_ir", "onnxscript", "sympy"),
}
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED or name.startswith("freeprompt.export"):
            raise ModuleNotFoundError(f"{name} is blocked by the test", name=name)

sys.meta_path.insert(0, Blocked())
"""


def _sources(room: str) -> Iterator[Path]:
    """Files of a room, not those of a room within it, nor what is behind a link."""
    folder = ROOT / ROOMS[room]
    within = [ROOT / other for other in ROOMS.values() if folder in (ROOT / other).parents]
    for path in sorted(folder.rglob("*.py")):
        if not any(parent in within or (parent.is_symlink() and parent != folder) for parent in path.parents):
            yield path


def _module(path: Path) -> str:
    """Full name of a file's module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "freeprompt":
        parts = ("freeprompt", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it, type checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write the full name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "freeprompt":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "package"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    wrong = []
    for path in _sources(room):
        # `import freeprompt` alone is its version, and the switch that keeps libraries silent.
        found = [module for module in _imports(path) if _room(module) not in (None, room, *ALLOWED[room])]
        wrong += [f"{path.relative_to(ROOT)} imports {module}" for module in found if module != "freeprompt"]
    assert wrong == []


def test_no_file_imports_in_a_circle() -> None:
    """Lazy imports count: what can only be imported late cannot be understood alone."""
    files = {_module(path): path for room in ROOMS for path in _sources(room)}
    graph = {name: {other for other in _imports(path) if other in files} - {name} for name, path in files.items()}
    # A package's own file is imported with each of its modules; here what the sources say.
    circles = [scc for scc in _strongly_connected(graph) if len(scc) > 1]
    assert circles == []


def _strongly_connected(graph: dict[str, set[str]]) -> list[list[str]]:
    """Tarjan's algorithm (SIAM Journal on Computing 1, 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            place = stack.index(node)
            found.append(stack[place:])
            del stack[place:]

    for node in graph:
        if node not in number:
            visit(node)
    return found


def test_circles_are_found() -> None:
    assert _strongly_connected({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"], ["a"]]


def test_only_export_imports_torch_and_what_comes_with_it() -> None:
    wrong = []
    for room in ROOMS.keys() - {"export"}:
        for path in _sources(room):
            found = {module.partition(".")[0] for module in _imports(path)} & EXPORT_ONLY
            if found:
                wrong.append(f"{path.relative_to(ROOT)} imports {sorted(found)}")
    assert wrong == []


def test_the_rules_are_applied_to_files_that_exist() -> None:
    for room in ROOMS:
        assert len(list(_sources(room))) > 3
    torch_in_export = [p for p in _sources("export") if "torch" in set(_imports(p))]
    assert torch_in_export, "the reader of imports finds none where there are some"


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_below_the_command_line_prints_or_exits_or_calls_a_shell() -> None:
    forbidden = {"print", "exit", "quit", "sys.exit", "os._exit", "os.system", "os.popen", "breakpoint"}
    wrong = []
    for room in ROOMS.keys() - {"cli"}:
        for path in _sources(room):
            if path.name == "__main__.py":
                continue
            for name, call in _calls(ast.parse(path.read_text())):
                shell = [k for k in call.keywords if k.arg == "shell"]
                if name in forbidden or shell:
                    wrong.append(f"{path.relative_to(ROOT)}:{call.lineno} calls {name}")
    assert wrong == []


def _run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_importing_freeprompt_imports_nothing_heavy() -> None:
    done = _run(
        "import sys, freeprompt; "
        "print(sorted({'numpy', 'onnxruntime', 'PIL', 'tokenizers', 'msgspec'} & set(sys.modules)))"
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_engines_and_runtime_import_and_edit_without_torch(tiny_bundle: Path) -> None:
    """Every module of both, then a whole edit, with torch, diffusers, transformers and onnx made unimportable."""
    modules = [_module(path) for room in ("engines", "runtime") for path in _sources(room)]
    code = f"BLOCKED = {EXPORT_ONLY!r}\n{BLOCK}" + (
        "import importlib\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "import numpy as np\n"
        "from freeprompt import Editor\n"
        "editor = Editor.load(sys.argv[1], 'cpu', threads=1)\n"
        "inversion = editor.invert(np.zeros((64, 64, 3), np.uint8), steps=2)\n"
        "print(editor.edit(inversion, ['a red cat'])[0].size)\n"
        "print(sorted(BLOCKED & set(sys.modules)))\n"
    )
    done = _run(code, tiny_bundle, *modules)
    assert (done.returncode, done.stdout) == (0, "(64, 64)\n[]\n"), done.stderr


def test_the_block_blocks() -> None:
    done = _run(f"BLOCKED = {EXPORT_ONLY!r}\n{BLOCK}\nimport torch")
    assert "blocked by the test" in done.stderr
