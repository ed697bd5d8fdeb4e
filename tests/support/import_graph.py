"""Who imports whom, read from the source: statements wherever they stand, `import_module`, `__import__`.

Everything works on {dotted name: source}, so that a test can plant a module that no file has.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("calib", "engines", "edge")
DYNAMIC = ("import_module", "__import__")


@dataclass(frozen=True)
class Source:
    """The text of a module; `package` is true for an `__init__.py`."""

    text: str
    package: bool = False


def read_sources(root: Path) -> dict[str, Source]:
    """Every module of the three packages, by its dotted name; a package by the name of its folder."""
    sources = {}
    for path in (p for package in PACKAGES for p in sorted((root / package).rglob("*.py"))):
        parts = path.relative_to(root).with_suffix("").parts
        package = parts[-1] == "__init__"
        sources[".".join(parts[:-1] if package else parts)] = Source(path.read_text(encoding="utf-8"), package)
    return sources


def imported_names(source: Source, module: str = "") -> set[str]:
    """Every dotted name that a source may import; of `from a import b` both `a.b`, which may be a module, and nothing else."""
    tree = ast.parse(source.text)
    return {name for node in ast.walk(tree) for name in _statement(node, source, module)} | _looked_up(tree)


def _statement(node: ast.AST, source: Source, module: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module.split(".")
            parts = parts[: len(parts) - node.level + source.package]
            base = ".".join([*parts, *filter(None, [base])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and _called(node) in DYNAMIC and node.args:
        argument = node.args[0]
        if isinstance(argument, ast.JoinedStr):  # f"edge.{name}": what stands before the first value
            argument = argument.values[0]
        if isinstance(argument, ast.Constant):
            yield str(argument.value).strip(".")


def _called(node: ast.Call) -> str:
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))


def _looked_up(tree: ast.Module) -> set[str]:
    """The strings of a source that imports by a name which it looks up."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    looks_up = any(_called(call) in DYNAMIC and call.args and not isinstance(call.args[0], ast.Constant) for call in calls)
    if not looks_up:
        return set()
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    heads = [text.partition(":")[0] for text in strings]
    return {head for head in heads if head and all(part.isidentifier() for part in head.split("."))}


def module_of(name: str, modules: Mapping[str, object]) -> str | None:
    """The module that a dotted name belongs to: the name itself or its longest beginning that is one."""
    parts = name.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((beginning for beginning in beginnings if beginning in modules), None)


def import_graph(sources: Mapping[str, Source]) -> dict[str, list[str]]:
    """{module: the modules of `sources` that it imports}, sorted, itself left out."""
    targets = {m: {module_of(name, sources) for name in imported_names(source, m)} for m, source in sources.items()}
    return {module: sorted(names - {None, module}) for module, names in targets.items()}


def upward_packages(graph: Mapping[str, list[str]]) -> list[str]:
    """Imports from a package to one above it, "a -> b"."""
    return _against(graph, lambda module: module.split(".")[0], PACKAGES)


def upward_rooms(graph: Mapping[str, list[str]], package: str, rooms: tuple[str, ...]) -> list[str]:
    """Imports from a room of a package to a room above it, "a -> b"; the package itself is its face and stands above all."""

    def room(module: str) -> str:
        first, _, rest = module.partition(".")
        return rest.split(".")[0] if first == package and rest else ""

    return _against(graph, room, rooms)


def _against(graph, place, order):
    pairs = [(place(a), place(b), f"{a} -> {b}") for a, targets in graph.items() for b in targets]
    return [text for a, b, text in pairs if a in order and b in order and order.index(a) < order.index(b)]


def own_faces(graph: Mapping[str, list[str]]) -> list[str]:
    """Imports of a package by a module inside it, "a -> b": a module imports modules, its face is for others."""
    return [f"{a} -> {b}" for a, targets in graph.items() for b in targets if a.startswith(f"{b}.")]


def circles(graph: Mapping[str, list[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a circle (Tarjan's strongly connected components of two and more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, []):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return groups
