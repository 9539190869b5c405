"""Expressions on a table's columns, as `where=` takes them: comparisons and arithmetic, no more.

Commands are pasted from papers and pages, so nothing that is typed here is run: an expression is
parsed, and only the constructs in `_KINDS` are accepted.  There are no calls, no attributes and no
names other than columns.
"""

from __future__ import annotations

import ast
import difflib
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

Operand: TypeAlias = Any
"""A column, or a number, a text or a truth value."""
_COMPARE: Mapping[type[ast.cmpop], Callable[[Operand, Operand], Operand]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Operand, Operand], Operand]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
_KINDS = "comparisons, arithmetic, and, or, not, in, columns, numbers and texts"
_TOKEN = re.compile(
    r"""(?P<text>'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`(?P<column>[^`]*)`|(?P<sign>[&|])"""
)
_PLACE = "_column_{}_"


class ExpressionError(ValueError):
    """An expression that cannot be evaluated, with what is wrong."""


def evaluate(expression: str, table: pd.DataFrame) -> Operand:
    """The value of an expression on a table: a column of the table's index, or a single value.

    Args:
        expression: Made of columns (with other characters in their names between backticks; a
            dotted name as it is), numbers, texts and lists of these: and, or, not (& | ~ too,
            which here bind as weakly as these), in, not in, comparisons, + - * / // % **.
        table: Its columns are what names mean.

    Raises:
        ExpressionError: Anything else, or values that cannot be combined.
    """
    quoted: dict[str, str] = {}

    def plain(match: re.Match[str]) -> str:
        if match["text"]:
            return match["text"]
        if match["sign"]:
            return " and " if match["sign"] == "&" else " or "
        place = _PLACE.format(len(quoted))
        quoted[place] = match["column"]
        return place

    try:
        tree = ast.parse(_TOKEN.sub(plain, expression).strip(), mode="eval")
        with np.errstate(all="ignore"):
            return _Evaluator(table, quoted).value(tree.body)
    except SyntaxError as error:
        if re.search(r"(?<![<>=!])=(?!=)", expression):
            raise ExpressionError("invalid syntax; equal is ==") from error
        raise ExpressionError(f"invalid syntax: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise ExpressionError("too deeply nested") from error
    except ExpressionError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ExpressionError(" ".join(str(error).split())) from error


class _Evaluator:
    def __init__(self, table: pd.DataFrame, quoted: Mapping[str, str]) -> None:
        self.table, self.quoted = table, quoted

    def value(self, node: ast.expr) -> Operand:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as constant):
                return constant
            case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
                return [self._single(element) for element in elements]
            case ast.Name() | ast.Attribute():
                return self._column(node)
            case ast.BoolOp(op=op, values=values):
                parts = [_condition(self.value(value)) for value in values]
                result = parts[0]
                for part in parts[1:]:
                    result = result & part if isinstance(op, ast.And) else result | part
                return result
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                held = _condition(self.value(operand))
                return ~held if isinstance(held, pd.Series) else not held
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
                number = _number(self.value(operand))
                return -number if isinstance(op, ast.USub) else number
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                a, b = _number(self.value(left)), _number(self.value(right))
                if isinstance(op, ast.Pow):  # whole numbers would grow without end
                    a, b = a * 1.0, b * 1.0
                return _ARITHMETIC[type(op)](a, b)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self._comparison(left, ops, comparators)
        raise ExpressionError(f"{_said(node)} is not allowed; there are {_KINDS}")

    def _single(self, node: ast.expr) -> Operand:
        value = self.value(node)
        if isinstance(value, pd.Series | list):
            raise ExpressionError("a list holds numbers and texts only")
        return value

    def _column(self, node: ast.Name | ast.Attribute) -> pd.Series:
        name = ast.unparse(node)
        for place, column in self.quoted.items():
            name = column if name == place else name
        by_name = {str(column): column for column in self.table.columns}
        if name not in by_name:
            if isinstance(node, ast.Attribute) and not re.fullmatch(r"[\w.]+", name):
                raise ExpressionError(f"{_said(node)} is not allowed; there are {_KINDS}")
            close = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(by_name)}"
            raise ExpressionError(f"name {name!r} is not a column; {hint}")
        found = self.table[by_name[name]]
        if isinstance(found, pd.DataFrame):
            raise ExpressionError(f"the table has several columns {name!r}")
        return found

    def _comparison(
        self, left: ast.expr, ops: list[ast.cmpop], comparators: list[ast.expr]
    ) -> Operand:
        result: Operand = None
        a = self.value(left)
        for op, node in zip(ops, comparators, strict=True):
            b = self.value(node)
            holds = _compare(op, a, b)
            result = holds if result is None else result & holds
            a = b
        return result


def _compare(op: ast.cmpop, a: Operand, b: Operand) -> Operand:
    listed = isinstance(op, ast.In | ast.NotIn) or (
        isinstance(op, ast.Eq | ast.NotEq) and isinstance(b, list)
    )
    if listed:
        if not isinstance(b, list | pd.Series):
            raise ExpressionError("in needs a list: recipe in ['sun', 'nearest']")
        if not isinstance(a, pd.Series):
            raise ExpressionError("in needs a column on its left")
        held = a.isin(b)
        return ~held if isinstance(op, ast.NotIn | ast.NotEq) else held
    if isinstance(a, list) or isinstance(b, list):
        raise ExpressionError("a list is compared by in, not in, == or != only")
    if type(op) not in _COMPARE:
        raise ExpressionError("is is not allowed; equal is ==")
    return _COMPARE[type(op)](a, b)


def _condition(value: Operand) -> Operand:
    if isinstance(value, bool | np.bool_) or (
        isinstance(value, pd.Series) and pd.api.types.is_bool_dtype(value)
    ):
        return value
    raise ExpressionError("and, or and not go between conditions, e.g. N > 1e6 and D > 1e9")


def _number(value: Operand) -> Operand:
    numeric = isinstance(value, int | float | np.number) or (
        isinstance(value, pd.Series) and pd.api.types.is_numeric_dtype(value)
    )
    if not numeric:
        raise ExpressionError("arithmetic needs numbers")
    return value


def _said(node: ast.AST) -> str:
    names = {
        ast.Call: "a call", ast.Attribute: "an attribute", ast.Subscript: "a subscript",
        ast.Lambda: "a lambda", ast.JoinedStr: "a formatted text", ast.NamedExpr: "an assignment",
    }  # fmt: skip
    for kind, words in names.items():
        if isinstance(node, kind):
            return words
    return type(node).__name__
