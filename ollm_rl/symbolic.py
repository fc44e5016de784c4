"""Symbolic comparison of two answers with math-verify and sympy. Runs inside the verifier's worker processes."""

import json
import logging
import os
import queue
import resource
import sys
import threading

import sympy
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

CONFIG = [LatexExtractionConfig(), ExprExtractionConfig()]


def compare(gold: str, answer: str) -> str:
    """`equal`, `different` or `unparsable`.

    math-verify rounds numbers before it compares them, which accepts neighbours among large ones. What it
    accepts as equal is therefore checked again, exactly, when both sides are numbers.
    """
    left, right = _parse(gold), _parse(answer)
    if not left or not right:
        return "unparsable"
    if not verify(left, right, timeout_seconds=None):
        return "different"
    a, b = left[0], right[0]
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr) and a.is_number and b.is_number:
        return "equal" if _same_number(a, b) else "different"
    return "equal"


def _parse(text: str) -> list:
    return parse(f"${text}$", extraction_config=CONFIG, parsing_timeout=None)


def _same_number(a: sympy.Expr, b: sympy.Expr) -> bool:
    a, b = sympy.nsimplify(a, rational=True), sympy.nsimplify(b, rational=True)
    if a == b:
        return True
    difference = a - b
    if difference.is_zero is not None:
        return bool(difference.is_zero)
    return sympy.simplify(difference) == 0


def serve(memory_limit: int) -> None:
    """Body of a worker process: a JSON line `[gold, answer]` in, a line with the reason out, until the input ends.

    `memory_limit` is in bytes of address space.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    logging.disable(logging.CRITICAL)
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(questions,), daemon=True).start()
    print("ready", file=replies, flush=True)
    while True:
        try:
            reason = compare(*json.loads(questions.get()))
        except Exception:  # a MemoryError or RecursionError is the answer's fault as well
            reason = "unparsable"
        print(reason, file=replies, flush=True)


def _read(questions: "queue.SimpleQueue[str]") -> None:
    """The input ends with the parent, which may have been killed; the main thread, deep in sympy, would not notice."""
    for line in sys.stdin:
        questions.put(line)
    os._exit(1)
