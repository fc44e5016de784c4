r"""The final answer that a text states.

Policy:

* What a model thinks is no answer: text between `<think>` and `</think>` goes (`<thinking>`, `<thought>` and `<reasoning>`
  alike), and all that stands before a `</think>` whose beginning was in the prompt. A thought that never ends leaves no
  answer. Of `<answer>...</answer>`, the content counts.
* Of the rest, the last `TAIL` characters are looked at, for a final answer stands at the end.
* The last complete `\boxed{...}` (or `\fbox`) counts. Boxes that follow one another with nothing but a comma, "and" or "or"
  between them are one answer, a list.
* A box behind "not", "rather than", "instead of" or "wrong answer is" is none.
* Only "the final answer is 5", "Final answer: 5" or a heading "Final answer" above it, when they stand behind that box and no
  other box follows, count more. "The answer is 5" does not.
* Without a complete box, the last of these counts: "answer is" (or "answer:", "correct option is", a heading "Answer"), and
  GSM8K's `####` with an answer on its line, which a Markdown heading of words has not. What follows counts up to the end of
  the sentence, or is a display formula; not if it holds a box that was cut off.
* What is left of a text behind its thoughts, if it is one short line without prose.
* Otherwise there is no answer. A text that the token budget cut off is judged by the same rules.
"""

import re
from collections.abc import Sequence
from typing import Any

TAIL = 50_000  # characters
MAX_PHRASE = 300  # characters of an answer that stands in no box
MAX_FORMULA = 2_000  # characters of a display formula

_THOUGHT = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.IGNORECASE | re.DOTALL)


def texts_of(completions: Sequence[Any]) -> list[str]:
    """Completions as TRL hands them over, texts or messages, as texts: of messages the last one."""
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]


def extract_answer(text: str) -> str | None:
    """The final answer that a solution states, or None."""
    said = _without_thoughts(text) if "<" in text else text
    if said is None:
        return None
    tail = said[-TAIL:]
    tagged = list(_ANSWER_TAG.finditer(tail)) if "<" in tail else []
    answer = _stated(tagged[-1][1] if tagged else tail)
    if answer is None and tagged and r"\boxed" not in tagged[-1][1]:
        answer = tagged[-1][1]
    if answer is None and said is not text and _is_bare(rest := said.strip()):
        answer = rest.strip("*")
    return answer.strip(" \t\r\n") or None if answer is not None else None  # a form feed may be a damaged \f


def _without_thoughts(text: str) -> str | None:
    """None if a thought never ends."""
    said: list[str] = []
    begin, thinking = 0, False
    for tag in _THOUGHT.finditer(text):
        if tag[1]:
            if not thinking:  # it began in the prompt
                said = []
            begin, thinking = tag.end(), False
        elif not thinking:
            said.append(text[begin : tag.start()])
            thinking = True
    return None if thinking else "\n".join([*said, text[begin:]])


def _stated(text: str) -> str | None:
    """The answer that counts in a text without thoughts."""
    box = _last_box(text)
    judgement = None
    for phrase in reversed(list(_PHRASE.finditer(text, box[1] if box else 0))):
        if box is not None and not (phrase["final"] or phrase["final_"]):
            continue
        answer = _behind(text, phrase)
        if answer is None and box is None:
            return judgement  # it was cut off
        if not answer or (box is not None and not _is_short(answer)):
            continue
        if not _JUDGEMENT.match(answer):
            return answer
        judgement = judgement or answer
    return judgement if box is None else box[0]


# Boxes -----------------------------------------------------------------------------------------------------------

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BETWEEN_BOXES = re.compile(
    r"[\s$,;.]*(?:\\text\s*\{\s*)?(?:and|or)?(?:\s*\})?[\s$,;]*(?:\n\s*[-*]\s+)?(?:[a-zA-Z](?:_\{?[0-9a-z]\}?)?\s*=\s*)?[\s$]*"
)
# What stands before a box that is not the answer.
_REJECTED = re.compile(
    r"(?:\b(?:not|never|rather than|instead of|unlike|wrong(?: answer)?(?: is| would be)?|incorrect(?: answer)?(?: is)?)|\\neq?|≠)[\s$(*]*$",
    re.IGNORECASE,
)


def _last_box(text: str) -> tuple[str, int] | None:
    r"""The content of the last complete `\boxed{...}`, joined with those right before it, and where it ends."""
    boxes: list[tuple[int, int, int]] = []  # start of the command, of its content, end of its content
    stack: list[tuple[int, int] | None] = []
    for token in _BRACES.finditer(text):
        if token[0] == "}":
            if stack and (opened := stack.pop()) is not None:
                while boxes and boxes[-1][0] > opened[0]:  # boxes inside this one
                    boxes.pop()
                boxes.append((*opened, token.start()))
        elif token[0] == "{":
            stack.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:
            stack.append((token.start(), token.end()))
    boxes = [box for box in boxes if not _REJECTED.search(text[max(box[0] - 40, 0) : box[0]])]
    if not boxes:
        return None
    found = [boxes.pop()]
    while boxes and _joined(text[boxes[-1][2] + 1 : found[-1][0]]):
        found.append(boxes.pop())
    contents = [text[start:end].strip(" \t\r\n") for _, start, end in reversed(found)]
    return ", ".join(dict.fromkeys(contents)), found[0][2]


def _joined(between: str) -> bool:
    return len(between) < 40 and bool(_BETWEEN_BOXES.fullmatch(between))


# Phrases ---------------------------------------------------------------------------------------------------------

_PHRASE = re.compile(
    r"""^[ \t]*+\#{0,6}+[ \t]*+[*_]{0,3}+(?:the[ ])?(?P<final>final[ ])?answer[ \t]*+[*_]{0,3}+[ \t]*+\#*+[ \t]*+$  # a heading
    | (?<![^\W_])(?:(?P<final_>final)[ ](?:\w{1,20}[ ])?)?answers?\b(?:[ ](?:to|for|of)\b[^.:\n]{1,80}?)?
      [ \t]*+[*_]{0,3}+[ \t]*+(?:(?:is|are|equals)\b|[:：=])
    | \b(?:correct|right|best)[ ](?:option|choice)[ \t]*+(?:is\b|:)
    | (?<!\#)\#{4}(?!\#)[ \t*$]*+(?![0-9]+(?:[.):][ \t]|st\b|nd\b|rd\b|th\b|[ ](?-i:[A-Z][a-z])))  # GSM8K's, before no heading of words
      (?=[-+.]?[ ]?[0-9]|[-+]?[ ]?[\\({\[€£¥₹√π]|[^\W\d_](?![^\W\d_]|[ ][^\W\d_]{2})|(?:yes|no|true|false|none)\b)
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_DISPLAY = re.compile(
    r"\\\[(?P<a>.*?)\\\]|\$\$(?P<b>.*?)\$\$|\\begin\{(?P<name>(?:equation|align|gather|multline)\*?)\}(?P<c>.*?)\\end\{(?P=name)\}"
    r"|```[a-z]*\n(?P<d>.*?)```",
    re.DOTALL,
)
_OPENED = re.compile(r"\\\[|\$\$|\\begin\{(?:equation|align|gather|multline)|```")
_FILLER = re.compile(
    r"(?:(?:therefore|thus|then|hence|simply|just|given by|equal to|exactly|indeed|clearly|surely|certainly|actually|as follows)\b[\s,:]*)+",
    re.IGNORECASE,
)
_ABBREVIATED = re.compile(r"\b(?:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|sq|cu|approx|rs|u\.s)$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$|[*\"”]+(?:\s|$))|[。！？]|(?<=\S)\*\*(?=[\s.,;:!?)]|$)")
_CLAUSE = re.compile(
    r";\s*[a-z]{3,}.*|,\s*i\.?e\b.*|,\s*an? (?:second|minute|hour|day|week|month|year)\b.*|(?<=[a-z0-9])\s+for (?:both|all|each|every|the|[0-9]+|two|three)\b.*"
    r"|(?<=[a-z0-9])\s+\((?=[^()]*[a-z]{3})[0-9a-z ]+\)$"
    r"|(?:,\s*|\s+)(?:because|since|therefore|thus|hence|which|meaning|as (?:required|desired|claimed|needed|expected))\b.*"
    r"|,\s*(?:as|so|not|and so|and thus)\b.*|\s+\((?:since|because|as)\b.*|(?:,\s*|\s+)(?:in total|in all|altogether|overall|together|combined)$|,\s*(?:respectively|exactly|approximately|roughly|indeed|of course)$|\s+\#+\s*$",
    re.IGNORECASE | re.DOTALL,
)
_JUDGEMENT = re.compile(
    r"(?:not|right|correct|wrong|incorrect|verified|confirmed|consistent|reasonable|unique|obvious|clear|above|below|boxed|"
    r"in|shown|given)\b",
    re.IGNORECASE,
)
_PROSE = re.compile(r"(?<!\\)\b[^\W\d_]{3,} +[^\W\d_]{2,}|[?!:]$")
_SHORT = re.compile(r"[-+±≈]?\s?(?:[0-9.$\\({\[|€£¥₹√π∞]|[^\W\d_](?![^\W\d_]))|[^\W\d_][\w-]*$")


def _behind(text: str, phrase: re.Match[str]) -> str | None:
    """What a phrase says the answer is; empty if nothing is there, None if it was cut off."""
    start = phrase.end() - (phrase[0].endswith("$") and phrase[0].lstrip().startswith("####"))
    rest = text[start : start + MAX_FORMULA].lstrip(" \t\r\n:：*=_")
    rest = _FILLER.sub("", rest, count=1).lstrip(" \t\r\n:：*=_") if _FILLER.match(rest) else rest
    if _OPENED.match(rest):
        display = _DISPLAY.match(rest)
        if display is None:
            return None
        return _one_line(display["a"] or display["b"] or display["c"] or display["d"] or "")
    line = rest[:MAX_PHRASE].partition("\n")[0]
    for end in _SENTENCE_END.finditer(line):
        if end[0] != "." or not _ABBREVIATED.search(line[: end.start()]):
            line = line[: end.start()]
            break
    if nested := _PHRASE.search(line):  # "The answer is 5" below a heading
        line = line[nested.end() :].lstrip(" \t:：*=_")
    line = _CLAUSE.sub("", line).strip(" \t*`")
    if line.endswith(")") and "(" not in line and "[" not in line:  # (the answer is 5)
        line = line[:-1]
    return None if r"\boxed" in line else line.strip(" \t\r")


def _one_line(formula: str) -> str:
    """The rows of a display as one chain or list."""
    if r"\boxed" in formula or not ("&" in formula or formula.count("\n") > 2) or r"\begin" in formula:
        return formula.strip(" \t\r\n")
    rows = [row.replace("&", "").strip(" \t\r\n") for row in formula.split("\\\\")]
    whole = ""
    for row in filter(None, rows):
        whole = (
            f"{whole} {row}"
            if not whole or row[0] in "=<>+-" or row.startswith((r"\le", r"\ge"))
            else f"{whole}, {row}"
        )
    return whole.strip(" \t")


def _is_bare(text: str) -> bool:
    return (
        len(text) < 60
        and "\n" not in text
        and r"\boxed" not in text
        and bool(_SHORT.match(text.strip("*")))
        and not _PROSE.search(text)
    )


def _is_short(answer: str) -> bool:
    """No prose: what may stand against a box."""
    return bool(_SHORT.match(answer)) and len(re.findall(r"(?<!\\)\b[^\W\d_]{3,}", answer)) <= 4


def repair_escapes(text: str) -> str:
    r"""`\frac` and `\binom` where JSON that was not escaped twice left a form feed and `rac`, as in Omni-MATH."""
    return text.replace("\x0c", r"\f").replace("\x08", r"\b")
