"""Who may import whom, and what the run-time may not need: read from the sources, and proved by running."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Package -> folder; the neutral contract is what lies in freeprompt/ itself.
FOLDERS = {"contract": "freeprompt", "engines": "engines", "runtime": "runtime", "export": "export"}
# What each may import of the others: export -> freeprompt <- engines <- runtime.
ALLOWED = {
    "contract": {"contract"},
    "engines": {"contract", "engines"},
    "runtime": {"contract", "engines", "runtime"},
    "export": {"contract", "export"},
}
# Only the public API and the command line see everything.
SEES_ALL = ("editor.py", "__init__.py", "__main__.py")
EXPORT_ONLY = {
    *("torch", "torchvision", "diffusers", "transformers", "accelerate"),
    *("onnx", "onnx_ir", "onnxscript"),
}
BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED or name.startswith("freeprompt.export"):
            raise ModuleNotFoundError(f"{name} is blocked by the test", name=name)

sys.meta_path.insert(0, Blocked())
"""


def _sources(folder: str) -> Iterator[Path]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        # In a checkout that serves as a view for type checkers, freeprompt/runtime is a link to runtime/.
        if ROOT.resolve() / folder in path.resolve().parents:
            yield path


def _imports(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in it, type checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write the full name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _layer(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "freeprompt":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "contract"


def _is_command_line(path: Path) -> bool:
    return path.parent.name == "freeprompt" and path.name.startswith("cli")


@pytest.mark.parametrize("layer", FOLDERS)
def test_imports_point_one_way(layer: str) -> None:
    wrong = []
    for path in _sources(FOLDERS[layer]):
        if layer == "contract" and (path.name in SEES_ALL or _is_command_line(path)):
            continue
        known = (None, *ALLOWED[layer])
        found = [module for module in _imports(path) if _layer(module) not in known]
        wrong += [f"{path.relative_to(ROOT)} imports {module}" for module in found]
    assert wrong == []


# What `freeprompt build --backend cuda` alone needs, and asks for in an error that says so.
ON_REQUEST = {"engines/cuda_fusion.py": {"onnx"}}


def test_only_export_imports_torch_and_what_comes_with_it() -> None:
    wrong = []
    for layer in ("contract", "engines", "runtime"):
        for path in _sources(FOLDERS[layer]):
            found = {module.partition(".")[0] for module in _imports(path)} & EXPORT_ONLY
            found -= ON_REQUEST.get(str(path.relative_to(ROOT)), set())
            if found:
                wrong.append(f"{path.relative_to(ROOT)} imports {sorted(found)}")
    assert wrong == []


def test_the_rules_are_applied_to_files_that_exist() -> None:
    for folder in FOLDERS.values():
        assert len(list(_sources(folder))) > 3
    torch_in_export = [p for p in _sources("export") if "torch" in set(_imports(p))]
    assert torch_in_export, "the reader of imports finds none where there are some"


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_below_the_command_line_prints_or_exits_or_calls_a_shell() -> None:
    forbidden = {"print", "exit", "quit", "sys.exit", "os._exit", "os.system", "os.popen", "breakpoint"}
    wrong = []
    for folder in FOLDERS.values():
        for path in _sources(folder):
            if _is_command_line(path) or path.name == "__main__.py":
                continue
            for name, call in _calls(ast.parse(path.read_text())):
                shell = [k for k in call.keywords if k.arg == "shell"]
                if name in forbidden or shell:
                    wrong.append(f"{path.relative_to(ROOT)}:{call.lineno} calls {name}")
    assert wrong == []


@pytest.mark.parametrize("folder", ["freeprompt", "engines", "runtime"])
def test_the_run_time_is_written_in_python_3_9(folder: str) -> None:
    for path in _sources(folder):
        ast.parse(path.read_text(), filename=str(path), feature_version=(3, 9))


def _python_3_9() -> str | None:
    """A Python 3.9 that starts; the shims of version managers are found but may not."""
    managed = sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python"))
    for candidate in (*map(str, managed), shutil.which("python3.9")):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def test_a_real_python_3_9_compiles_the_run_time() -> None:
    python = _python_3_9()
    if python is None:
        pytest.skip("no Python 3.9 on this machine")
    files = [str(path) for folder in ("freeprompt", "engines", "runtime") for path in _sources(folder)]
    code = "import sys\nfor name in sys.argv[1:]: compile(open(name, 'rb').read(), name, 'exec')"
    done = subprocess.run([python, "-c", code, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_annotations_that_are_read_at_run_time_are_of_python_3_9() -> None:
    """msgspec evaluates those of the dataclasses that it decodes; `X | Y` is an error there before Python 3.10."""
    path = ROOT / "freeprompt" / "manifest.py"
    wrong = [
        f"line {statement.lineno}: {ast.unparse(statement)}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        for part in ast.walk(statement.annotation)
        if isinstance(part, ast.BinOp)
    ]
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
    modules = [
        f"freeprompt.{layer}.{path.stem}"
        for layer in ("engines", "runtime")
        for path in _sources(FOLDERS[layer])
        if path.stem != "__init__"
    ]
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
