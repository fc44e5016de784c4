"""Comparison of two answers. Runs inside the verifier's worker processes, which bound its time and memory.

The outer shape is compared part by part; formulas are parsed by math-verify's LaTeX parser and compared exactly.
math-verify's own comparison is not used: it takes neighbouring large numbers for equal.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import sympy

from ollm_rl.reward.answer_shape import Items, Leaf, Node, NotUnderstood, Option, Relation, Words, is_name, read
from ollm_rl.reward.equality import proportional, same
from ollm_rl.reward.latex import parse
from ollm_rl.reward.literals import Literal
from ollm_rl.reward.normal_form import normal_form, plain_number
from ollm_rl.reward.numeric import NotEvaluable, TooLarge
from ollm_rl.reward.quantities import equal_formulas, equal_quantities, same_formula
from ollm_rl.reward.units import agree
from ollm_rl.reward.words import option_letter, words_key

_GROUPS = re.compile(r"[0-9]{1,3}(?:,[1-9][0-9]{2})+")  # with a group such as 000 it is no list
_INDIAN_GROUPS = re.compile(r"[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}")
_CHOOSE = re.compile(r"(?<![\\a-zA-Z])C\(([0-9]+),([0-9]+)\)")
FLIPPED = {">": "<", ">=": "<="}


_normal_form = lru_cache(maxsize=1024)(normal_form)  # a gold has many answers


def compare(gold: str, answer: str) -> str:
    """`equal`, `different`, `unparsable` or `too_large`.

    An answer with a unit equals one without, but not one with another unit; a percentage equals its fraction, an
    angle in degrees its radians. A list is compared without order, a tuple with it.
    """
    try:
        left, right = _normal_form(gold), _normal_form(answer)
        if r"\ln" in left + right:  # one of them means the natural logarithm, so does the other
            left, right = _natural(left), _natural(right)
        if r"\binom" in left or _choose(left) == right:  # the gold writes binomials: C(12,4) is no point then
            left, right = _choose(left), _choose(right)
        return "equal" if _equal(_read(left, right), _read(right, left)) else "different"
    except (NotUnderstood, NotEvaluable):
        return "unparsable"
    except (TooLarge, MemoryError, RecursionError, OverflowError):
        return "too_large"


def _read(text: str, other: str) -> Node:
    """`120,150` is a number, but a list if the other answer is one, as `150, 120`; `15,00,000` is one if the other is."""
    if _INDIAN_GROUPS.fullmatch(text) and plain_number(other) is not None:
        return Leaf(text.replace(",", ""))
    if _GROUPS.fullmatch(text) and not _GROUPS.fullmatch(other) and isinstance(read(other), Items):
        return read(text.replace(",", ", "))
    return read(text)


def understood(text: str) -> str:
    """`equal` if the answer is understood, as words or as formulas that have values; else the reason why not, and only
    the very same text would equal it."""
    try:
        for part in _formulas(read(normal_form(text))):
            formula = parse(part)
            if isinstance(formula, sympy.Expr):
                same(formula, sympy.Add(formula, sympy.S.Zero, evaluate=False))
        return "equal"
    except (NotUnderstood, NotEvaluable):
        return "unparsable"
    except (TooLarge, MemoryError, RecursionError, OverflowError):
        return "too_large"


def _formulas(node: Node) -> list[str]:
    if isinstance(node, Leaf):
        return [node.text]
    if isinstance(node, Literal | Option):
        return []
    if isinstance(node, Items):
        return [f for part in node.parts for f in _formulas(part)]
    return [] if isinstance(node, Words) else [f for part in node.parts for f in _formulas(read(part))]


def _choose(text: str) -> str:
    return _CHOOSE.sub(r"\\binom{\1}{\2}", text)


def _natural(text: str) -> str:
    return re.sub(r"\\log(?![a-zA-Z_])", r"\\ln", text)


# Shapes ----------------------------------------------------------------------------------------------------------


def _equal(gold: Node, answer: Node) -> bool:
    """Two answers; where one of them has names or units and the other has not, they are left out."""
    gold, answer = _without_wrapping(gold), _without_wrapping(answer)
    if isinstance(gold, Option) or isinstance(answer, Option):
        return _equal_options(gold, answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _key(gold) == _key(answer)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _equal_relations(gold, answer)
    if isinstance(gold, Relation):
        return _relation_and_value(gold, answer, _assigned(gold))
    if isinstance(answer, Relation):
        return _relation_and_value(answer, gold, _stated(answer))
    if isinstance(gold, Literal) or isinstance(answer, Literal):
        return _equal_literals(gold, answer)
    if isinstance(gold, Leaf) and isinstance(answer, Leaf):
        return equal_quantities(gold, answer)
    if isinstance(gold, Items) and isinstance(answer, Items):
        return _equal_items(gold, answer)
    return _equal_to_object(gold, answer) or _equal_to_object(answer, gold)


def _without_wrapping(node: Node) -> Node:
    """A list or set of one is that one; a list whose members are the same is one as well ("1/2 or 0.5")."""
    while isinstance(node, Items) and node.kind in ("list", "set") and node.parts:
        first, *others = node.parts
        if isinstance(first, Leaf) and first.text == r"\emptyset":
            break
        if others and not (node.kind == "list" and len(others) == 1 and _equal(first, others[0])):
            break
        node = first
    return node


def _equal_literals(gold: Node, answer: Node) -> bool:
    """Literals that state the same; else as formulas where both may be some."""
    if isinstance(gold, Literal) and isinstance(answer, Literal) and gold.is_stated_by(answer):
        return not (gold.unit and answer.unit) or agree(gold.unit, answer.unit)
    if isinstance(gold, Literal):
        if not gold.formula:
            return False
        gold = Leaf(gold.text, gold.unit)
    if isinstance(answer, Literal):
        number = plain_number(gold.text) if isinstance(gold, Leaf) else None
        if not answer.answer_formula or (":" in answer.text and number is not None and number.denominator == 1):
            return False  # a ratio is no integer
        answer = Leaf(answer.text, answer.unit)
    return _equal(gold, answer)


def _equal_options(gold: Node, answer: Node) -> bool:
    """The same letter, and the same text where both have one; with the letter left out, the same text."""
    if isinstance(gold, Option) and isinstance(answer, Option):
        both = gold.label and answer.label
        return gold.letter == answer.letter and (not both or _equal(read(gold.label), read(answer.label)))
    choice, other = (gold, answer) if isinstance(gold, Option) else (answer, gold)
    assert isinstance(choice, Option)
    letter = option_letter(other.text) if isinstance(other, Leaf) and not other.unit else None
    if letter:
        return choice.letter == letter
    return bool(choice.label) and _equal(read(choice.label), other)


def _key(node: Node) -> str:
    return node.key if isinstance(node, Words) else words_key(node.text) if isinstance(node, Leaf) else str(node)


def _equal_items(gold: Items, answer: Items) -> bool:
    if "union" in (gold.kind, answer.kind):
        return _same_sets(gold, answer)
    kinds = {gold.kind, answer.kind}
    conditions = [x for x in (gold, answer) if all(isinstance(p, Relation) for p in x.parts)]
    if len(conditions) == 1 and _same_sets(gold, answer):  # x > 1 and x < 5 for (1, 5)
        return True
    if len(gold.parts) != len(answer.parts):
        return False
    named, others = _by_name(gold), _by_name(answer)
    if named and others:
        return _matched(gold.parts, answer.parts, _equal)
    if named or others:  # x = 2, y = 3 for (2, 3): in the order of the names
        left, right = named or gold.parts, others or answer.parts
        return kinds <= {"list", "()"} and all(map(_equal, left, right))
    if kinds <= {"list", "set"}:
        return _matched(gold.parts, answer.parts, _equal)
    if "ratio" in kinds:
        return len(kinds) == 1 and _proportional_parts(gold, answer)
    if len(kinds) == 1 or kinds in ({"list", "()"}, {"list", "[]"}):
        return all(map(_equal, gold.parts, answer.parts))
    return False


def _proportional_parts(gold: Items, answer: Items) -> bool:
    """`x:2x:3x` and `1:2:3`."""
    a, b = ([p.text for p in items.parts if isinstance(p, Leaf)] for items in (gold, answer))
    if len(a) != len(gold.parts) or len(b) != len(answer.parts):
        return False
    pairs = zip(a[1:], b[1:], strict=True)
    return all(equal_formulas(rf"({a[0]})\cdot({y})", rf"({b[0]})\cdot({x})") for x, y in pairs)


def _by_name(items: Items) -> list[Node] | None:
    """The equations of a list that gives values to several names, in the order of the names."""
    if not all(isinstance(p, Relation) and _assigned(p) is not None for p in items.parts):
        return None
    subjects = {_subject(p): p for p in items.parts if isinstance(p, Relation)}
    return [subjects[name] for name in sorted(subjects)] if len(subjects) == len(items.parts) > 1 else None


def _matched(left: Sequence[Any], right: Sequence[Any], equal: Callable[..., Any]) -> bool:
    """There is a one-to-one matching of equals; equality is transitive, so the first partner will do."""
    rest = list(right)
    for item in left:
        partner = next((i for i, other in enumerate(rest) if equal(item, other)), None)
        if partner is None:
            return False
        rest.pop(partner)
    return not rest


def _equal_to_object(shape: Node, leaf: Node) -> bool:
    """A tuple and a vector, or an interval and a set that the parser knows."""
    if not (isinstance(leaf, Leaf) and isinstance(shape, Items)):
        return False
    value = parse(leaf.text)
    if isinstance(value, sympy.MatrixBase) and 1 in value.shape and shape.kind in ("()", "[]"):
        entries = [parse(p.text) if isinstance(p, Leaf) else None for p in shape.parts]
        return len(entries) == len(value) and all(map(same_formula, value, entries))
    return isinstance(value, sympy.Set) and _same_sets(shape, leaf)


def _same_sets(gold: Node, answer: Node) -> bool:
    try:
        return bool(_as_set(gold) == _as_set(answer))
    except (NotUnderstood, TypeError, ValueError):
        return False


def _as_set(node: Node) -> sympy.Set:
    if isinstance(node, Relation):
        if node.operators == ("!=",) and is_name(node.parts[0]):
            return sympy.S.Reals - sympy.FiniteSet(parse(node.parts[1]).doit())
        if (interval := _as_interval(node)) is not None:
            return _as_set(interval)
    if isinstance(node, Items) and node.kind == "list" and all(isinstance(p, Relation) for p in node.parts):
        parts = [_as_set(p) for p in node.parts]
        if node.joined != "or" and len({_subject(p) for p in node.parts if isinstance(p, Relation)}) == 1:
            return sympy.Intersection(*parts)
        return sympy.Union(*parts)
    if isinstance(node, Items) and node.kind == "union":
        return sympy.Union(*map(_as_set, node.parts))
    if isinstance(node, Items) and node.kind == "set":
        if not all(isinstance(p, Leaf) for p in node.parts):
            raise NotUnderstood("a set of more than numbers")
        return sympy.FiniteSet(*[parse(p.text).doit() for p in node.parts if isinstance(p, Leaf)])
    if isinstance(node, Items) and len(node.kind) == 2 and len(node.parts) == 2:
        low, high = (parse(p.text) if isinstance(p, Leaf) else sympy.nan for p in node.parts)
        low, high = low.doit(), high.doit()
        if not (low < high) == True:  # noqa: E712 - sympy's truth may be neither
            raise NotUnderstood("an empty interval")
        return sympy.Interval(low, high, node.kind[0] == "(", node.kind[1] == ")")
    if isinstance(node, Leaf) and isinstance(value := parse(node.text), sympy.Set):
        return value.doit()
    raise NotUnderstood("not a set")


# Relations -------------------------------------------------------------------------------------------------------


def _assigned(relation: Relation) -> Node | None:
    """What `x = 5` or `x \\in S` gives to a name."""
    if set(relation.operators) <= {"="} or relation.operators == ("in",):
        if is_name(relation.parts[0]):
            return read(relation.parts[-1])
        if len(relation.parts) == 2 and is_name(relation.parts[1]) and relation.operators == ("=",):
            return read(relation.parts[0])
    return None


def _stated(relation: Relation) -> Node | None:
    """The last part of a chain of equalities such as `x = 2 + 3 = 5`, all of whose other numbers must be equal."""
    if (value := _assigned(relation)) is None and set(relation.operators) == {"="}:
        value = read(relation.parts[-1])
    if value is not None and set(relation.operators) == {"="}:
        for part in relation.parts[:-1]:
            if not is_name(part) and not _may_equal(part, value):
                return None
    return value


def _may_equal(part: str, value: Node) -> bool:
    """A part of a chain that ends in `value`: a number equal to it, or what the problem asked for, such as `x+y`. An
    equation that is not solved, such as `2x=6` or `x^2=6`, states no value."""
    try:
        node = read(part)
        formula = parse(node.text) if isinstance(node, Leaf | Literal) else None
    except NotUnderstood:
        return True
    if not isinstance(formula, sympy.Expr) or _equal(node, value):
        return True
    return len(formula.free_symbols) > 1


def _relation_and_value(relation: Relation, other: Node, value: Node | None) -> bool:
    if value is not None:
        return _equal(value, other)
    if isinstance(other, Items) and (interval := _as_interval(relation)) is not None:
        return _equal(interval, other) or _same_sets(interval, other)
    return isinstance(other, Items) and _same_sets(relation, other)


def _equal_relations(gold: Relation, answer: Relation) -> bool:
    if _all_names(gold) and _all_names(answer) and max(len(gold.parts), len(answer.parts)) > 2:
        return set(gold.parts) == set(answer.parts)
    left, right = _assigned(gold), _stated(answer)
    if left is not None and right is not None and _subject(gold) == _subject(answer):
        return _equal(left, right)
    if isinstance(left, Items) and isinstance(right, Items):  # points with different names
        return False
    if (a := _as_interval(gold)) is not None and (b := _as_interval(answer)) is not None:
        return _subject(gold) == _subject(answer) and _equal(a, b)
    alike = gold.operators == answer.operators and len(gold.parts) == len(answer.parts)
    if alike and all(_equal(read(a), read(b)) for a, b in zip(gold.parts, answer.parts, strict=True)):
        return True
    return _matched(_sides(gold), _sides(answer), _same_side)


def _subject(relation: Relation) -> str:
    return next((p for p in relation.parts if is_name(p)), "")


def _all_names(relation: Relation) -> bool:
    return set(relation.operators) == {"="} and all(map(is_name, relation.parts))


def _as_interval(relation: Relation) -> Items | None:
    """`1 < x \\le 3`, `x > 2` or `x \\in (1, 3]` as an interval."""
    if relation.operators == ("in",) and is_name(relation.parts[0]):
        value = read(relation.parts[1])
        return value if isinstance(value, Items) else None
    parts, operators = relation.parts, relation.operators
    if all(o in FLIPPED for o in operators):
        parts, operators = parts[::-1], tuple(FLIPPED[o] for o in operators[::-1])
    if not all(o in ("<", "<=") for o in operators):
        return None
    ends = [o == "<=" for o in operators]
    names = [is_name(p) for p in parts]
    if names == [False, True, False]:
        low, high, closed = parts[0], parts[2], (ends[0], ends[1])
    elif names == [True, False]:
        low, high, closed = r"-\infty", parts[1], (False, ends[0])
    elif names == [False, True]:
        low, high, closed = parts[0], r"\infty", (ends[0], False)
    else:
        return None
    return Items("(["[closed[0]] + ")]"[closed[1]], (read(low), read(high)))


def _sides(relation: Relation) -> list[tuple[str, sympy.Expr]]:
    """Operator and difference of every neighbouring pair, inequalities turned to `<`."""
    found = []
    for a, operator, b in zip(relation.parts, relation.operators, relation.parts[1:], strict=False):
        left, right = parse(a), parse(b)
        if operator == "in" or not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
            raise NotUnderstood(f"{a} {operator} {b}")
        if operator in FLIPPED:
            left, right, operator = right, left, FLIPPED[operator]
        found.append((operator, sympy.Add(left, sympy.Mul(-1, right, evaluate=False), evaluate=False)))
    return found


def _same_side(a: tuple[str, sympy.Expr], b: tuple[str, sympy.Expr]) -> bool:
    return a[0] == b[0] and proportional(a[1], b[1], positive=a[0] in ("<", "<="))
