"""What a Python project's source files say: their modules, the applications in them, whether they are programs.

Files are parsed, never imported. One that does not parse says nothing here, except whether it has a `__main__` guard.
"""

from __future__ import annotations

import ast
import posixpath
import re
import warnings
from dataclasses import dataclass

from shared.stacks.base import FileTree

ASGI = {"fastapi": "FastAPI", "starlette.applications": "Starlette", "quart": "Quart"}
WSGI = {"flask": "Flask"}
MAX_PARSED_BYTES = 1_000_000
_CLASSES = {f"{module}.{name}" for module, name in {**ASGI, **WSGI}.items()}
_ASIDE = {
    "tests",
    "test",
    "docs",
    "doc",
    "examples",
    "example",
    "benchmarks",
    "migrations",
    "node_modules",
    "venv",
    "env",
}
_GUARD = re.compile(r"""(?m)^if\s+(__name__\s*==\s*["']__main__["']|["']__main__["']\s*==\s*__name__)\s*:""")


@dataclass(frozen=True)
class App:
    """A web application at the top level of a module. `kind` is FastAPI, Starlette, Quart or Flask.

    `root` is the folder its module is imported from ("" for the project's); `factory`: `name` is a function that makes
    the application.
    """

    path: str
    name: str
    kind: str
    root: str
    module: str
    factory: bool = False

    @property
    def target(self) -> str:
        return f"{self.module}:{self.name}"


def sources(files: FileTree) -> list[str]:
    """The project's Python files, without tests, documentation, examples and setup.py; nearest the root first."""
    found = []
    for path in files.matching("*.py"):
        folders, name = path.split("/")[:-1], path.rpartition("/")[2]
        if (
            _ASIDE.intersection(folders)
            or name in ("setup.py", "conftest.py", "noxfile.py")
            or name.startswith("test_")
        ):
            continue
        if not any(folder.startswith(".") for folder in folders) and not name.endswith("_test.py"):
            found.append(path)
    return sorted(found, key=lambda path: (path.count("/"), path))


def has_sources(files: FileTree) -> str:
    """A Python file that makes the project's own folder a Python project; empty when there is none.

    A file in a folder counts when the folder is a package or `src`: a folder of scripts is a project of its own.
    """
    at_root = files.root("*.py")
    if at_root:
        return next((path for path in ("main.py", "app.py") if path in at_root), at_root[0])
    inside: dict[str, list[str]] = {}
    for path in files.matching("*.py"):
        inside.setdefault(path.partition("/")[0], []).append(path)
    for top, paths in inside.items():
        package = f"{top}/__init__.py" in files or f"{top}/__main__.py" in files
        if package or top == "src" or _mentions(files, paths, top):
            return paths[0]
    return ""


def imports_package(files: FileTree, name: str) -> bool:
    """Whether files below a folder import the folder itself by its name: then it is a package, `__init__.py` or not."""
    return _mentions(files, [path for path in files.matching("*.py") if path.startswith(f"{name}/")], name)


def _mentions(files: FileTree, paths: list[str], name: str) -> bool:
    wanted = re.compile(rf"(?m)^[ \t]*(from|import)[ \t]+{re.escape(name)}\b")
    return any(wanted.search(files.text(path)) for path in paths)


def parse(files: FileTree, path: str) -> ast.Module | None:
    """A file's syntax tree; None when it is not valid Python of this interpreter's version, or far too big."""
    if len(files.bytes(path)) > MAX_PARSED_BYTES:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in somebody else's strings
            return ast.parse(files.bytes(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def place(files: FileTree, path: str) -> tuple[str, str]:
    """The folder a file's module is imported from and the module's dotted name; no name when it has none."""
    folder, _, name = path.rpartition("/")
    parts = [*(folder.split("/") if folder else []), name.removesuffix(".py")]
    depth = 0
    if parts[0] == "src" and len(parts) > 1 and "src/__init__.py" not in files and not imports_package(files, "src"):
        depth = 1
    if len(parts) - depth > 1 and f"{folder}/__init__.py" not in files and _imports_sibling(files, path):
        depth = len(parts) - 1
    module = parts[depth:]
    if module[-1] == "__init__" and len(module) > 1:
        module.pop()
    if not all(part.isidentifier() for part in module):
        return "/".join(parts[:depth]), ""
    return "/".join(parts[:depth]), ".".join(module)


def _imports_sibling(files: FileTree, path: str) -> bool:
    """Whether a file imports the files beside it by their bare names, as a script does."""
    tree = parse(files, path)
    folder = posixpath.dirname(path)
    for node in ast.walk(tree) if tree else ():
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        for name in names:
            top = name.partition(".")[0]
            beside = f"{folder}/{top}.py" in files or f"{folder}/{top}/__init__.py" in files
            if beside and f"{top}.py" not in files and f"{top}/__init__.py" not in files:
                return True
    return False


def module_exists(files: FileTree, module: str) -> bool:
    """Whether a dotted name is a module of the project, in its folder or in `src`."""
    inner = module.replace(".", "/")
    return any(f"{root}{inner}{end}" in files for root in ("", "src/") for end in (".py", "/__init__.py"))


def apps(files: FileTree) -> list[App]:
    """The web applications of a project, most likely first: by file name, then nearness to the root."""
    likely = ["main", "app", "server", "api", "asgi", "wsgi", "__init__"]
    found = [app for path in sources(files) if (app := _app(files, path))]
    rank = {name: index for index, name in enumerate(likely)}

    def order(app: App) -> tuple[bool, int, int, str]:
        stem = app.path.rpartition("/")[2].removesuffix(".py")
        return app.factory, rank.get(stem, len(likely)), app.path.count("/"), app.path

    return sorted(found, key=order)


def _app(files: FileTree, path: str) -> App | None:
    text = files.text(path)
    if not any(name in text for name in (*ASGI.values(), *WSGI.values())):
        return None
    tree = parse(files, path)
    if tree is None:
        return None
    imported = _imports(tree)
    root, module = place(files, path)
    if not module:
        return None
    found = []
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        kind = _class(value, imported)
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if kind:
            found += [App(path, target.id, kind, root, module) for target in targets if isinstance(target, ast.Name)]
    if found:
        return next((app for app in found if app.name in ("app", "application")), found[0])
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in ("create_app", "make_app") and not _needs_arguments(node):
            kinds = [_class(child, imported) for child in ast.walk(node)]
            kind = next((kind for kind in kinds if kind), "")
            if kind:
                return App(path, node.name, kind, root, module, factory=True)
    return None


def _imports(tree: ast.Module) -> dict[str, str]:
    """Names at the top level of a module to what they were imported from, dotted."""
    names = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _class(value: ast.AST | None, imported: dict[str, str]) -> str:
    """The framework whose application class is called here, or empty."""
    if not isinstance(value, ast.Call):
        return ""
    dotted = []
    function: ast.expr = value.func
    while isinstance(function, ast.Attribute):
        dotted.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name) or function.id not in imported:
        return ""
    name = ".".join([imported[function.id], *reversed(dotted)])
    return name.rpartition(".")[2] if name in _CLASSES else ""


def _needs_arguments(function: ast.FunctionDef) -> bool:
    arguments = function.args
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional > 0 or any(default is None for default in arguments.kw_defaults)


def is_guarded(files: FileTree, path: str) -> bool:
    """Whether a file has an `if __name__ == "__main__":` at its top level."""
    return bool(_GUARD.search(files.text(path)))


def does_something(files: FileTree, path: str) -> bool:
    """Whether running a file does more than define things. One that does not parse does: it fails, and says why."""
    tree = parse(files, path)
    if tree is None:
        return True
    quiet = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    return any(
        not isinstance(node, quiet) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in tree.body
    )
