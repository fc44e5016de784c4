"""The page in headless Chromium, from a disk: sorting, filtering, curves, two runs problem by problem, episodes, search, export."""

import json

import pytest

from ollm_rl.view.page import write_view
from tests.browser import CHROMIUM, Browser
from tests.ollm_rl.view.conftest import HOSTILE, steps

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium or chrome on this machine: the page was not driven in a browser"
)
NAMES = "[...document.querySelectorAll('tr.r .name')].map(cell => cell.textContent)"


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile", tmp_path) as browser:
        yield browser
        assert not browser.thrown
        assert browser.js("document.body.dataset.hacked ?? null") is None
        assert browser.js("document.querySelectorAll('#main img, #main script').length") == 0


@pytest.fixture
def page(browser, runs):
    """The page of the runs, opened from the disk."""
    view = write_view(runs)
    browser.url = view.page.resolve().as_uri()
    browser.open(browser.url)
    browser.wait("document.body?.dataset.ready === 'runs'")
    browser.ids = browser.js("Object.fromEntries(index.runs.map(run => [run.name, run.id]))")
    return browser


def go(page, address, view):
    """Ask for an address, as a link does, and wait until it is shown."""
    page.js(f"document.body.dataset.ready = ''; location.hash = {json.dumps(address)}; null")
    page.wait(f"document.body.dataset.ready === {json.dumps(view)}")


def click(page, selector, until):
    page.js(f"document.querySelector({json.dumps(selector)}).click()")
    page.wait(until)


def shown(page):
    return page.js("document.getElementById('main').innerText")


def test_the_table_sorts_and_filters(page):
    assert set(page.js(NAMES)) == {"both/prior-3", "both/grpo-3", "broken_off", "hostile"}
    assert "0.750 [0.10, 0.90]" in shown(page) and "0.750 @8" in shown(page)
    click(page, "[data-sort=accuracy]", "location.hash.includes('sort=accuracy')")
    assert page.js(NAMES) == ["both/grpo-3", "both/prior-3", "hostile", "broken_off"]
    click(page, "[data-sort=accuracy]", "location.hash.includes('desc=0')")
    assert page.js(NAMES) == ["hostile", "both/prior-3", "both/grpo-3", "broken_off"]  # what is not known is last still
    click(page, "[data-sort=name]", "location.hash.includes('sort=name')")
    assert page.js(NAMES) == ["both/grpo-3", "both/prior-3", "broken_off", "hostile"]
    page.js(
        "{const box = document.querySelector('[data-field=q]'); box.focus(); box.value = 'GRPO sums'; box.dispatchEvent(new Event('input'))}"
    )
    page.wait("document.querySelectorAll('tr.r').length === 2")
    assert page.js(NAMES) == ["both/grpo-3", "broken_off"] and "2 of 4 runs" in shown(page)
    assert page.js("document.activeElement.dataset.field") == "q"  # typing goes on
    go(page, "f_state=interrupted", "runs")
    assert page.js(NAMES) == ["broken_off"]
    go(page, "q=nothing+of+it", "runs")
    assert "No run fits the filter." in shown(page)
    go(page, "", "runs")
    assert "1 note: what was passed over" in shown(page) and "photos/summer" in page.js(
        "document.getElementById('main').textContent"
    )


def test_curves_of_the_selected_runs_over_each_other(page):
    for name in ("both/grpo-3", "broken_off"):
        page.js(f"document.querySelector('[data-run=\"{page.ids[name]}\"] input').click()")
        page.wait(f"location.hash.includes('{page.ids[name]}')")
    page.js("[...document.querySelectorAll('button')].find(b => b.textContent === 'Curves of 2').click()")
    page.wait("document.body.dataset.ready === 'curves'")
    lines = page.js(
        "[...document.querySelectorAll('svg.plot polyline')].map(l => [l.dataset.run, l.getAttribute('points').split(' ').length, l.getAttribute('stroke')])"
    )
    assert [[run, n] for run, n, _ in lines] == [[page.ids["both/grpo-3"], 2], [page.ids["broken_off"], 12]]
    assert lines[0][2] != lines[1][2]
    assert "0.4\n" in shown(page).replace("\t", "\n")  # the last reward of the first
    page.js(
        "{const menu = [...document.querySelectorAll('select')][0]; menu.value = 'kl_from_prior'; menu.dispatchEvent(new Event('change'))}"
    )
    page.wait("location.hash.includes('metric=kl_from_prior') && document.body.dataset.ready === 'curves'")
    assert "1.2" in shown(page)
    page.js(
        "{const svg = document.querySelector('svg.plot'), box = svg.getBoundingClientRect(); svg.dispatchEvent(new MouseEvent('mousemove', {clientX: box.left + 80, clientY: box.top + 50}))}"
    )
    assert "at training episodes" in shown(page)
    go(page, f"view=curves&sel={page.ids['hostile']}", "curves")
    assert "None of these runs has learned" in shown(page)


def test_two_runs_problem_by_problem(page):
    prior, grpo = page.ids["both/prior-3"], page.ids["both/grpo-3"]
    go(page, f"sel={prior},{grpo}", "runs")
    page.js("[...document.querySelectorAll('button')].find(b => b.textContent.startsWith('Compare two')).click()")
    page.wait("document.body.dataset.ready === 'compare'")
    counts = page.js(
        "Object.fromEntries([...document.querySelectorAll('.boxes button')].map(b => [b.dataset.kind, b.firstChild.textContent]))"
    )
    first = page.js("new URLSearchParams(location.hash.slice(1)).get('a')")
    ours = {"a": "1", "b": "2", "both": "1", "neither": "0"}
    assert counts == (ours if first == prior else {**ours, "a": "2", "b": "1"})
    go(page, f"view=compare&a={prior}&b={grpo}&only=b", "compare")
    said = shown(page)
    assert "problem 2" in said and "problem 3" in said and "problem 0" not in said
    assert "The answer is 2. (prior)" in said and "The answer is 2. (grpo)" in said
    assert "failed (it answers 3; the answer is 2)" in said and said.count("token by token") == 4
    assert page.js("document.querySelector('.pair .same').textContent") == "The answer is 2. ("
    go(page, f"view=compare&a={prior}&b={grpo}&sb=train_1", "compare")
    assert "answer no problem in common" in shown(page)


def test_an_episode_token_by_token_and_its_export(page, runs, tmp_path):
    go(page, "q=grpo-3", "runs")
    click(page, "tr.r .name", "document.body.dataset.ready === 'run'")
    assert page.js("document.querySelectorAll('tr.e').length") == 4 and "3 of 4 solved" in shown(page)
    click(
        page, "tr.e[data-episode='0']", "document.querySelector('.trace .t') && document.body.dataset.ready === 'run'"
    )
    tokens = page.js(
        "[...document.querySelectorAll('.trace .t')].map(t => [t.firstChild.textContent, t.querySelector('small').textContent, t.className.trim()])"
    )
    assert tokens == [["a", "1", "t d rare"], ["b", "–", "t"]]
    options = page.js("[...document.querySelectorAll('.trace .o div')].map(o => [o.textContent, o.className])")
    assert options == [[f"0: “{json.dumps(HOSTILE, ensure_ascii=False)[1:-1]}” 90.0%", ""], ["1: “a” 4.0%", "picked"]]
    assert "failed (it answers 3; the answer is 2)" in shown(page)
    page.js("document.getElementById('export').click()")
    file = tmp_path / "both_grpo-3-greedy-0.json"
    for _ in range(200):
        if file.exists() and file.stat().st_size:
            break
        page.js("new Promise(done => setTimeout(done, 50))")
    stored = json.loads((runs / "both/grpo-3/rollouts/greedy.jsonl").read_text().splitlines()[0])
    assert json.loads(file.read_text()) == {
        "run": "both/grpo-3", "set": "greedy", "index": 0, **stored, "steps": steps([0, HOSTILE, 0.9]),
    }  # fmt: skip
    page.js("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))")
    page.wait("location.hash.includes('ep=1') && document.body.dataset.ready === 'run'")
    tokens = page.js("[...document.querySelectorAll('.trace .t')].map(t => t.firstChild.textContent)")
    assert tokens == ["a", "b"]  # from the tokenizer: nothing is stored of what the options would have said
    page.js("history.back()")
    page.wait("location.hash.includes('ep=0')")


def test_training_rollouts_at_any_iteration(page):
    go(page, f"view=run&run={page.ids['broken_off']}", "run")
    assert "training: 12 iterations" in shown(page)
    page.js(
        "{const slider = document.querySelector('input[type=range]'); slider.value = 6; slider.dispatchEvent(new Event('change'))}"
    )
    page.wait("location.hash.includes('set=train_7') && document.body.dataset.ready === 'run'")
    assert "training, iteration 7 of 12: 1 of 3 solved" in shown(page) and shown(page).count("step 7") == 3
    go(page, f"view=run&run={page.ids['broken_off']}&set=train_12&verdict=failed", "run")
    assert page.js("document.querySelectorAll('tr.e').length") == 2
    go(page, f"view=run&run={page.ids['broken_off']}&set=train_12&text=PROBLEM+t12-1", "run")
    assert page.js("document.querySelectorAll('tr.e').length") == 1


def test_search_reads_all_texts(page):
    go(page, "view=search&find=step+1", "search")
    page.wait("document.querySelector('[data-done]')")
    assert "15 hits in 58 episodes of 4 of 4 runs" in shown(page)  # iterations 1, 10, 11, 12, and 1 of the other
    assert page.js("document.querySelector('.hit mark').textContent") == "step 1"
    click(page, ".hit a", "document.querySelector('.trace')")
    go(page, "view=search&find=ONERROR&field=text", "search")
    page.wait("document.querySelector('[data-done]')")
    assert "4 hits" in shown(page)
    go(page, f"view=search&find=step&scope=sel&sel={page.ids['hostile']}", "search")
    page.wait("document.querySelector('[data-done]')")
    assert "0 hits in 4 episodes of 1 of 1 run" in shown(page)


def test_texts_that_are_html_stay_texts(page):
    for address, view in (
        ("view=runs&sort=task", "runs"), (f"view=run&run={page.ids['hostile']}", "run"), (f"view=run&run={page.ids['hostile']}&ep=3", "run"),
        (f"view=compare&a={page.ids['hostile']}&b={page.ids['both/grpo-3']}", "compare"), ("view=search&find=script", "search"),
    ):  # fmt: skip
        go(page, address, view)
        assert "</script><img src=x onerror=" in page.js("document.getElementById('main').textContent"), address
    attack = json.dumps('<i onclick="document.body.dataset.hacked = 1">x</i>')
    page.js(f"document.getElementById('main').insertAdjacentHTML('beforeend', {attack})")
    page.js(
        "document.querySelector('#main i').click()"
    )  # were something put in as HTML, the page's policy would stop it


def test_what_is_missing_is_said(page, runs):
    run = page.js("index.runs.find(run => run.name === 'both/prior-3').data")
    (runs / "view" / "data" / run).unlink()
    go(page, f"view=run&run={page.ids['both/prior-3']}", "run")
    assert "is missing: run ollm-rl view again" in page.js("document.getElementById('error').textContent")
    go(page, "view=run&run=nobody&set=none&ep=99", "run")
    assert page.js("document.getElementById('error').textContent") == ""
