"""The page and its server: every request gets an answer in JSON, those of strangers a refusal, and model text stays text."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request

import pytest

import ollm_rl as ol
from ollm_rl.cli.app import main
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError, RewardError
from ollm_rl.report.pages import page
from ollm_rl.serving.config import PlayConfig
from ollm_rl.serving.game import Game
from ollm_rl.serving.opening import opened
from ollm_rl.serving.play import LARGEST, PlayServer, play_page
from ollm_rl.session.local import Session
from ollm_rl.tasks import Problem
from tests.conftest import QUICK_KEYS

HOSTILE = '</script><img src=x onerror=alert(1)><b>"&amp; 1 + 1 = ?'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture
def server(tiny):
    """A game on the tiny model, served."""
    with PlayServer(Game(tiny, config=PlayConfig(num_problems=3, search_budget=40)), "127.0.0.1", 0) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def ask(server, path, body=None, method=None, **headers):
    """Status, headers and what was answered; `body` is sent as it is if it is bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {} if body is None else {"Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, data, given)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return (
        answer.status,
        answer.headers,
        json.loads(content) if "json" in answer.headers["Content-Type"] else content.decode(),
    )


def test_a_game_over_http(server):
    status, headers, state = ask(server, "/state")
    assert (status, state) == (200, server.game.state()) and state["num_problems"] == 3
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    chosen = state["options"][-1]["latent"]
    status, _, after = ask(server, "/choose", {"latent": chosen, "turn": state["turn"]})
    assert status == 200 and [t["latent"] for t in after["tokens"] if t["by"]] == [chosen] and after["can_undo"]
    status, _, back = ask(server, "/undo", {})
    assert status == 200 and back["options"] == state["options"] and not back["tokens"]
    status, _, ended = ask(server, "/finish", {"by": "prior"})
    assert status == 200 and ended["ended"]["gold"] and not ended["options"]
    assert ask(server, "/undo", {})[2]["options"] == state["options"]
    status, _, searched = ask(server, "/search", {"budget": 10})
    assert status == 200 and searched["searched"]["tokens"] <= 10
    status, _, other = ask(server, "/new", {"index": 2, "split": "train"})
    assert status == 200 and (other["index"], other["split"]) == (2, "train")


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/choose", b"{", 400, "the body is no JSON"),
        ("/choose", b"\xff", 400, "the body is no JSON"),
        ("/choose", b"[" * 9000, 400, "the body is no JSON"),
        ("/choose", [1], 400, "expected an object"),
        ("/choose", {}, 400, "needs 'latent'"),
        ("/choose", {"latent": 99}, 400, "latent 99 is not offered here; expected one of"),
        ("/choose", {"latent": "1"}, 400, "latent='1'; expected an integer"),
        ("/choose", {"latent": True}, 400, "expected an integer"),
        ("/choose", {"latent": 1, "latnt": 2}, 400, "it takes latent, turn"),
        ("/choose", {"latent": 0, "turn": 0}, 409, "reload"),
        ("/undo", {}, 400, "nothing to undo"),
        ("/finish", {"by": "policy"}, 400, "expected one of prior"),
        ("/new", {"index": 3}, 400, "expected 0 to 2"),
        ("/new", {"split": "tst"}, 400, "Did you mean 'test'?"),
        ("/search", {"budget": 0}, 400, "play.search_budget=0"),
        ("/nowhere", {}, 404, "expected one of /, /state, /new"),
        ("/state", {}, 404, "expected one of"),
        ("/nowhere", None, 404, "nothing at '/nowhere'"),
        ("/undo", None, 405, "POST"),
        ("/choose", b" " * (LARGEST + 1), 413, f"expected at most {LARGEST}"),
    ],
)
def test_mistakes_are_answered_and_change_nothing(server, path, body, status, said):
    before = server.game.state()
    found, _, answer = ask(server, path, body)
    assert found == status and said in answer["error"]
    assert server.game.state() == before


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "169.254.169.254"]
)
@pytest.mark.parametrize("path", ["/", "/state", "/undo"])
def test_other_hosts_are_refused(server, path, host):
    status, _, answer = ask(server, path, {} if path == "/undo" else None, Host=host)
    assert status == 403 and "is not this server" in answer["error"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9999", "LOCALHOST:80", "[::1]:8000"])
def test_this_machines_own_names_are_served(server, host):
    assert ask(server, "/state", Host=host)[0] == 200
    assert ask(server, "/new", {}, Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_pages_of_others_are_refused(server, origin):
    before = server.game.state()
    status, _, answer = ask(server, "/new", {}, Origin=origin)
    assert status == 403 and "may not play here" in answer["error"]
    status, _, answer = ask(server, "/new", {}, Content_Type="text/plain")
    assert status == 415 and server.game.state() == before


def test_failures_are_answered_and_the_game_goes_on(server, tiny, monkeypatch):
    def fails(error):
        def judge(*_):
            raise error

        return judge

    monkeypatch.setattr(tiny, "judge", fails(RewardError("reward 'mine' raised ValueError")))
    status, _, answer = ask(server, "/finish", {"by": "prior"})
    assert status == 500 and "reward 'mine'" in answer["error"]
    assert not ask(server, "/state")[2]["ended"]["judged"]
    ask(server, "/undo", {})
    monkeypatch.setattr(tiny, "judge", fails(KeyError("x")))
    status, _, answer = ask(server, "/finish", {"by": "prior"})
    assert status == 500 and "KeyError" in answer["error"]
    monkeypatch.undo()
    assert ask(server, "/new", {})[0] == 200


def test_the_page_needs_nothing_else_and_holds_no_model_text(server):
    server.game.problem = Problem("x", HOSTILE, "2", None, {})
    status, headers, text = ask(server, "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert text.count("<script") == text.count("</script") == 1 and f'<script nonce="{nonce}">' in text
    assert nonce not in ask(server, "/")[2]
    assert "onerror" not in text and "innerHTML" not in text and "http://" not in text and "https://" not in text
    assert all(word in text for word in ("decision point", "options", "latent", "Prior"))
    assert ask(server, "/state")[2]["problem"] == HOSTILE


def test_names_on_the_page_are_escaped(tiny, monkeypatch):
    game = Game(tiny)
    state = game.state()
    monkeypatch.setattr(game, "state", lambda: {**state, "task": HOSTILE})
    text = play_page(game, "n")
    assert "<img" not in text and text.count("</script") == 1 and "&lt;/script&gt;&lt;img" in text
    assert "<img" not in page("play.html.j2", title=HOSTILE, facts="", nonce='"><img>')


def test_a_taken_port_is_said(server, tiny):
    with pytest.raises(ConfigurationError, match="play.port=0 takes any"):
        PlayServer(server.game, "127.0.0.1", server.server_address[1])
    with pytest.raises(ConfigurationError, match="play.host=nowhere.invalid"):
        PlayServer(server.game, "nowhere.invalid", 0)


def test_a_policy_is_played_with_in_its_own_session(tiny, tmp_path):
    session = Session(
        tiny.backbone, tiny.plugin, ol.make_task("chain_sum", max_terms=3), engine={"max_new_tokens": 12}, seed=5
    )
    ol.make_agent("grpo", session).save(tmp_path / "policy")
    own, agent = opened(
        compose([f"policy={tmp_path / 'policy'}"]), [f"policy={tmp_path / 'policy'}", "play.split=train"]
    )
    assert agent.session is own and own.task.settings == session.task.settings
    assert own.engine_settings["max_new_tokens"] == 12 and own.backbone.name == "tiny"
    keys = [f"policy={tmp_path / 'policy'}", *QUICK_KEYS, "task.max_terms=4"]
    other, agent = opened(compose(keys), keys)
    assert agent.session is other and other.task.settings["max_terms"] == 4
    assert other.engine_settings["max_new_tokens"] == 16
    own.close()
    other.close()


def test_the_command_serves_until_it_is_interrupted(tmp_path, own_cache, monkeypatch, capsys):
    opened_pages, answers = [], []
    monkeypatch.setattr("webbrowser.open", opened_pages.append)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def visitor():
        end = time.monotonic() + 60
        while not answers and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/state", timeout=10) as answer:
                    answers.append(json.load(answer))
            except OSError:
                time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does

    thread = threading.Thread(target=visitor)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests run in the background of a shell
    thread.start()
    main(
        [
            "play",
            *QUICK_KEYS,
            f"runs_dir={tmp_path}",
            "num_problems=2",
            f"port={port}",
            "play.open_browser=true",
        ]
    )
    thread.join()
    signal.signal(signal.SIGINT, before)
    assert answers[0]["num_problems"] == 2 and answers[0]["backbone"] == "tiny"
    assert opened_pages == [f"http://127.0.0.1:{port}/"]
    assert capsys.readouterr().out == f"play: http://127.0.0.1:{port}/  (Ctrl-C ends it)\nplay: ended\n"
    assert not any(tmp_path.iterdir())  # it is no run


@pytest.mark.skipif(
    BROWSER is None, reason="no chromium or chrome on this machine: the page was not driven in a browser"
)
def test_the_page_in_a_browser(server, tmp_path):
    """Presses keys by the address's #press=, and looks at what is then on the page."""
    server.game.problem = Problem("x", HOSTILE, server.game.problem.answer, None, {})
    second = sorted(server.game.state()["options"], key=lambda option: -option["prior"])[1]
    dom = driven(server.url + "#press=2,Enter,1,u", tmp_path)
    assert [t["by"] for t in server.game.state()["tokens"] if t["by"]] == ["you", "you"]
    assert server.game.state()["tokens"][0]["latent"] == second["latent"]
    assert 'data-ready="yes"' in dom and dom.count('class="o"') == len(server.game.state()["options"])
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in dom and "<img" not in dom
    assert dom.count("would take it") >= 1 and 'id="verdict" role="status" hidden' in dom
    ended = driven(server.url + "#press=p", tmp_path)
    assert (
        server.game.state()["ended"]
        and ("<b>Wrong</b>" in ended or "<b>Right</b>" in ended)
        and "taken by the prior" in ended
    )
    assert 'id="deciding" hidden' in ended
    server.game.new()
    assert "what shall come next?" in driven(server.url + "#press=9,x,Enter", tmp_path).lower()


def driven(url, tmp_path):
    """The page after its script has run."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000",
        "--dump-dom", url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_ending_waits_for_the_request_under_way(server, tiny, monkeypatch):
    begun, goes_on, order = threading.Event(), threading.Event(), []

    def judge(*_):
        begun.set()
        goes_on.wait(30)
        order.append("judged")

    monkeypatch.setattr(tiny, "judge", judge)
    asking = threading.Thread(target=ask, args=(server, "/finish", {"by": "prior"}))
    asking.start()
    assert begun.wait(30)
    threading.Timer(0.2, goes_on.set).start()
    server.settle()
    order.append("ended")
    asking.join()
    assert order == ["judged", "ended"] and server.lock.locked()
