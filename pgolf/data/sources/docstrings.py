"""Documentation out of Python source text, by parsing alone."""

import ast
import inspect
from collections.abc import Iterator

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# Functions that attach documentation to objects written in C, in torch and in numpy.
ATTACHING_CALLS = ("add_docstr", "add_newdoc")


def module_texts(module: str, source: bytes) -> list[tuple[str, str]]:
    """(name, text) documents of one module: the module itself, then objects documented by calls.

    Raises SyntaxError or ValueError when the source cannot be parsed by this Python.
    """
    if b'"""' not in source and b"'''" not in source:
        return []  # Almost every docstring is triple-quoted; parsing is what costs time.
    tree = ast.parse(source)
    sections = [section for section in _sections(tree, module) if section]
    own = ast.get_docstring(tree)
    texts = []
    if own or sections:
        texts.append((module, "\n\n".join([module, *([own] if own else []), *sections]) + "\n"))
    if any(name.encode() in source for name in ATTACHING_CALLS):
        attached: dict[str, list[str]] = {}
        for target, text in _attached(tree):
            attached.setdefault(f"{module}: {target}", [target]).append(text)
        texts += [(name, "\n\n".join(parts) + "\n") for name, parts in attached.items()]
    return texts


def topic_texts(source: bytes) -> list[tuple[str, str]]:
    """(name, text) of each entry of the dictionary `topics` in pydoc_data/topics.py."""
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="topics")], value=ast.Dict() as value):
                topics: dict[str, str] = ast.literal_eval(value)
                return [(f"pydoc_data.topics: {name}", text) for name, text in topics.items()]
    return []


def _sections(node: ast.AST, qualified: str) -> Iterator[str]:
    """One section per documented definition below `node`, in source order."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            name = f"{qualified}.{child.name}"
            if docstring := ast.get_docstring(child):
                yield f"{_signature(child, name)}\n\n{docstring}"
            yield from _sections(child, name)
        elif isinstance(child, ast.Assign) and (target := _documented_by(child)):
            if text := inspect.cleandoc(_literal(child.value)):
                yield f"{qualified}.{target}\n\n{text}" if target != "__doc__" else text
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _sections(child, qualified)


def _documented_by(assignment: ast.Assign) -> str:
    """`X` for `X.__doc__ = ...`, `__doc__` for `__doc__ = ...`, else the empty string."""
    match assignment.targets:
        case [ast.Name(id="__doc__")]:
            return "__doc__"
        case [ast.Attribute(attr="__doc__", value=value)]:
            return ast.unparse(value)
    return ""


def _signature(node: Definition, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {name}({bases})" if bases else f"class {name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({ast.unparse(node.args)}){returns}"


def _attached(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(object, documentation) for each call that attaches documentation, in source order.

    The forms in use: f(torch.abs, "..."), f("abs", "..."), f("numpy.x", "abs", "..."),
    f("numpy.x", "ndarray", ("T", "...")), the last also with a list of pairs, and decorators that
    take only parts of the text and name no object.
    """
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        function = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if not any(name in function for name in ATTACHING_CALLS) or len(call.args) < 2:
            continue
        *path, last = call.args[:3]
        if "\n" in _literal(call.args[0]):
            yield "decorated", inspect.cleandoc("".join(_literal(part) for part in call.args))
            continue
        target = ".".join(_literal(part) or ast.unparse(part) for part in path)
        for member, value in _members(last):
            if text := inspect.cleandoc(_literal(value)):
                yield target, f"{member}\n\n{text}" if member else text


def _members(node: ast.expr) -> list[tuple[str, ast.expr]]:
    match node:
        case ast.Tuple(elts=[ast.Constant(value=str(member)), value]):
            return [(member, value)]
        case ast.List(elts=pairs):
            return [member for pair in pairs for member in _members(pair)]
    return [("", node)]


def _literal(node: ast.expr) -> str:
    """The text of a string expression; fields of `.format(...)` and f-strings stay as written."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _literal(left) + _literal(right)
        case ast.Call(func=ast.Attribute(attr="format", value=value)):
            return _literal(value)
        case ast.JoinedStr(values=values):
            return "".join(_literal(part) for part in values)
        case ast.FormattedValue(value=value):
            return "{" + ast.unparse(value) + "}"
    return ""
