"""Which attributes of which classes the package reads, from its annotations: a small static type inference."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


class AttributeReads:
    """Reads of `receiver.name` where annotations say what the receiver is.

    Followed are parameters, annotated and assigned variables, attributes, properties and methods by their annotations.
    Classes are told apart by their names alone.
    """

    def __init__(self, package: Path) -> None:
        self._members: dict[str, dict[str, str]] = defaultdict(dict)
        """Class -> attribute -> class of its value."""
        self._bases: dict[str, list[str]] = {}
        self._returns: dict[str, str] = {}
        """Function -> class of its result."""
        self.reads: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        """(class, attribute) -> (class, function) in which it is read."""
        self.names_read: set[str] = set()
        """Attributes that are read of anything else than `self`."""
        trees = [ast.parse(file.read_text()) for file in sorted(package.rglob("*.py"))]
        classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self._names = {node.name for node in classes}
        for tree in trees:
            for node in tree.body:
                if isinstance(node, Function):
                    self._returns[node.name] = self._class_in(node.returns)
        for node in classes:
            self._add_class(node)
        for node in classes:
            for function in _functions(node.body):
                if function.name == "__init__":  # for the attributes that it assigns
                    self._walk(function, node.name)
        for node in classes:
            for function in _functions(node.body):
                self._walk(function, node.name)
        for tree in trees:
            for function in _functions(tree.body):
                self._walk(function, "")

    def _class_in(self, annotation: ast.AST | None) -> str:
        """The first known class in an annotation, also within `X | None`, `list[X]` or a string."""
        if annotation is None:
            return ""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value)
        names = (node.id for node in ast.walk(annotation) if isinstance(node, ast.Name))
        return next((name for name in names if name in self._names), "")

    def _add_class(self, node: ast.ClassDef) -> None:
        self._bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                self._members[node.name][statement.target.id] = self._class_in(statement.annotation)
            elif isinstance(statement, Function):
                returned = ast.unparse(statement.returns) if statement.returns else ""
                result = node.name if returned in ("Self", node.name) else self._class_in(statement.returns)
                self._members[node.name][statement.name] = result

    def _member(self, owner: str, name: str) -> str:
        for one in (owner, *self._bases.get(owner, ())):
            if name in self._members.get(one, {}):
                return self._members[one][name]
        return ""

    def _walk(self, function: Function, owner: str) -> None:
        arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        known = {argument.arg: self._class_in(argument.annotation) for argument in arguments}
        if owner and arguments:
            known[arguments[0].arg] = owner
        for node in _in_order(function):
            if isinstance(node, Function) and node is not function:
                known |= {a.arg: self._class_in(a.annotation) for a in (*node.args.args, *node.args.kwonlyargs)}
            if isinstance(node, ast.AnnAssign):
                self._assign(node.target, self._class_in(node.annotation), known)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign_all(target, node.value, known)
            elif isinstance(node, ast.NamedExpr):
                self._assign(node.target, self._type_of(node.value, known), known)
            elif isinstance(node, ast.For | ast.comprehension):
                self._assign(node.target, self._type_of(node.iter, known), known)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                    self.names_read.add(node.attr)
                for one in (receiver := self._type_of(node.value, known), *self._bases.get(receiver, ())):
                    self.reads[one, node.attr].add((owner, function.name))

    def _assign_all(self, target: ast.AST, value: ast.AST, known: dict[str, str]) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._assign_all(one, other, known)
        else:
            self._assign(target, self._type_of(value, known), known)

    def _assign(self, target: ast.AST, type_: str, known: dict[str, str]) -> None:
        if isinstance(target, ast.Name):
            known[target.id] = type_ or known.get(target.id, "")
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and type_:
            self._members[known.get(target.value.id, "")].setdefault(target.attr, type_)

    def _type_of(self, node: ast.AST, known: dict[str, str]) -> str:
        match node:
            case ast.Name(id=name):
                return known.get(name, "")
            case ast.Attribute(value=value, attr=name):
                return self._member(self._type_of(value, known), name)
            case ast.Call(func=ast.Name(id="replace"), args=[first, *_]):
                return self._type_of(first, known)
            case ast.Call(func=ast.Attribute(attr="replace"), args=[first, *_]):
                return self._type_of(first, known)
            case ast.Call(func=ast.Name(id="cls")):
                return known.get("cls", "")
            case ast.Call(func=ast.Name(id=name)):
                return name if name in self._names else self._returns.get(name, "")
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)) if name in self._names:
                return self._member(name, method)
            case ast.Call(func=ast.Attribute() as method):
                return self._type_of(method, known)
            case ast.BoolOp(values=values):
                return next(filter(None, (self._type_of(value, known) for value in values)), "")
            case ast.IfExp(body=body, orelse=orelse):
                return self._type_of(body, known) or self._type_of(orelse, known)
            case ast.Subscript(value=value) | ast.NamedExpr(value=value):
                return self._type_of(value, known)
        return ""


def _functions(body: list[ast.stmt]) -> Iterator[Function]:
    return (node for node in body if isinstance(node, Function))


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, assignments before what reads them; comprehensions' variables before their elements."""
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        children = [*node.generators, *(child for child in children if not isinstance(child, ast.comprehension))]
    for child in children:
        yield child
        yield from _in_order(child)
