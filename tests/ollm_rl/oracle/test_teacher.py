"""Teacher forcing: what the options can say of a gold solution."""

import pytest
import torch

from ollm_rl.errors import DataError
from ollm_rl.oracle.teacher import PICKERS, teacher_forced
from ollm_rl.tasks import Problem


@pytest.mark.parametrize("picker", PICKERS)
def test_what_is_reproduced_is_the_gold_text(roomy, picker):
    problems = [p for p in roomy.problems("tune", 30) if p.extra["style"] != "steps"]
    row = teacher_forced(roomy, problems, picker)
    assert row.n_problems == len(problems)
    assert 0 <= row.teacher.exact_reproduction <= 1
    assert row.teacher.tokens_reproduced <= row.teacher.tokens_covered + 1e-6
    if picker == "cover":
        assert row.teacher.tokens_reproduced == pytest.approx(row.teacher.tokens_covered, abs=1e-6)


def test_options_that_say_the_gold_token_reproduce_the_solution(roomy, monkeypatch):
    """The gold solution is what latents 0, 1, 2, 0, ... say: then `cover` finds it again, to the token."""
    problem = roomy.problems("tune", 1)[0]
    engine = roomy.new_engine(num_slots=1)
    engine.admit([roomy.prompter.encode(problem)])
    said: list[int] = []
    for step in range(30):
        token = int(engine.options.tokens[0, step % 3])
        said.append(token)
        if token in engine.eos_ids:
            break
        engine.advance(torch.tensor([token]))
    text = roomy.backbone.tokenizer.decode(said, skip_special_tokens=False)
    gold = Problem("own", problem.problem, "1", text)
    monkeypatch.setattr(roomy.prompter, "encode_solution", lambda solution: said)
    row = teacher_forced(roomy, [gold], "cover")
    assert row.teacher.tokens_covered == 1 and row.teacher.exact_reproduction == 1


def test_problems_without_solutions_are_refused(tiny):
    with pytest.raises(DataError, match="reads gold solutions"):
        teacher_forced(tiny, [Problem("1", "1 + 1 = ?", "2")])
