"""The server behind the OpenAI API: its answers are the engine's, whoever else asks, and no client can bring it down."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
import torch

import ollm_rl as ol
from ollm_rl.cli.app import main
from ollm_rl.errors import ConfigurationError
from ollm_rl.options.policies import Sampling
from ollm_rl.rollout.acting import PolicyAdapter
from ollm_rl.serving.batching import Batcher, Job
from ollm_rl.serving.config import ServeConfig
from ollm_rl.serving.export import export
from ollm_rl.serving.serve import Api, Server, bound, url
from ollm_rl.serving.served import Served
from ollm_rl.serving.writing import Writer
from tests.conftest import QUICK_KEYS

BUDGET = 12


@pytest.fixture(scope="module")
def agent(tiny):
    session = ol.Session(tiny.backbone, tiny.plugin, ol.make_task("chain_sum"), engine={"max_new_tokens": BUDGET})
    agent = ol.make_agent("grpo", session)
    with torch.no_grad():
        agent.policy.net[-1].weight *= 0.2  # so that drawn texts differ
    return agent


@contextmanager
def served(agent, **settings):
    """A server on a free port, and a client of it."""
    config = ServeConfig(**({"model": "sums", "port": 0} | settings))
    api = Api(Served.of(agent, config, None), config)
    with bound(config.host, config.port) as sock:
        ready = threading.Event()
        server = Server(api, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        assert ready.wait(10)
        client = openai.OpenAI(base_url=f"{url(sock)}/v1", api_key=config.api_key or "any", max_retries=0, timeout=30)
        client.api, client.port = api, sock.getsockname()[1]
        try:
            yield client
        finally:
            client.close()
            server.should_exit = True
            thread.join()
            api.batcher.close(timeout_s=0)


@pytest.fixture(scope="module")
def client(agent):
    with served(agent) as found:
        yield found


@pytest.fixture(scope="module")
def episodes(agent):
    """Greedy ones of the engine."""
    problems = agent.session.problems("test", 8)
    return agent.session.rollout([ol.Request(p, 0) for p in problems], PolicyAdapter(agent, True))


def says(problem):
    return [{"role": "user", "content": problem}]


def chat(client, problem, **settings):
    given = {"model": "sums", "messages": says(problem), "temperature": 0} | settings
    return client.chat.completions.create(**given)


def post(client, body, path="/v1/chat/completions", **headers):
    """Status, and what was answered."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request("POST", path, data, given)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_greedy_answers_are_the_engines(agent, client, episodes):
    prefix = len(agent.session.prompter.prefix)
    for episode in episodes:
        answer = chat(client, episode.problem.problem)
        [choice] = answer.choices
        assert choice.message.content == episode.text
        assert choice.finish_reason == ("stop" if episode.stop == "eos" else "length")
        prompt = prefix + len(agent.session.prompter.encode(episode.problem))
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, len(episode.tokens))
        assert answer.usage.total_tokens == prompt + len(episode.tokens)
    assert answer.model == "sums" and answer.object == "chat.completion"


def test_a_seed_gives_the_engines_episode_of_that_seed(agent, client):
    problem = agent.session.problems("test", 1)[0]
    drawn = agent.session.rollout([ol.Request(problem, seed) for seed in range(5, 9)], Sampling(agent.policy))
    texts = [c.message.content for c in chat(client, problem.problem, temperature=1, seed=5, n=4).choices]
    assert texts == [e.text for e in drawn] and len(set(texts)) > 1
    assert chat(client, problem.problem, temperature=1, seed=7).choices[0].message.content == texts[2]


def test_a_low_temperature_is_nearly_greedy(client, episodes):
    text = episodes[0].problem.problem
    assert chat(client, text, temperature=0.001, seed=3).choices[0].message.content == episodes[0].text


def test_streams_join_to_the_same_text(client, episodes):
    for settings in ({"temperature": 0}, {"temperature": 1, "seed": 3, "n": 3}):
        whole = chat(client, episodes[1].problem.problem, logprobs=True, **settings)
        told = dict.fromkeys(range(len(whole.choices)), "")
        tokens = {i: [] for i in told}
        finish, usage, chunks = {}, None, 0
        for chunk in chat(
            client, episodes[1].problem.problem, logprobs=True, stream=True,
            stream_options={"include_usage": True}, **settings,
        ):  # fmt: skip
            chunks += 1
            usage = chunk.usage or usage
            for choice in chunk.choices:
                told[choice.index] += choice.delta.content or ""
                tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
                finish[choice.index] = choice.finish_reason
        for choice in whole.choices:
            assert told[choice.index] == choice.message.content and finish[choice.index] == choice.finish_reason
            assert tokens[choice.index] == choice.logprobs.content
        assert usage == whole.usage and chunks > 4


def test_stop_strings_cut_off_the_text(client, episodes):
    text = next(e.text for e in episodes if len(e.text) > 6)
    problem = next(e.problem.problem for e in episodes if e.text == text)
    stop = text[4:6]
    expected = text[: text.find(stop)]
    [choice] = chat(client, problem, stop=[stop, "never said"]).choices
    assert (choice.message.content, choice.finish_reason) == (expected, "stop")
    pieces = list(chat(client, problem, stop=stop, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_and_latents_are_the_policys(agent, client, episodes):
    episode = next(e for e in episodes if e.num_decisions)
    answer = chat(client, episode.problem.problem, logprobs=True, top_logprobs=20, extra_body={"latents": True})
    [choice] = answer.choices
    assert [d["position"] for d in choice.latents] == [i for i, z in enumerate(episode.latents) if z >= 0]
    assert [d["latent"] for d in choice.latents] == [z for z in episode.latents if z >= 0]
    assert sum(d["logprob"] for d in choice.latents) == pytest.approx(episode.log_prob, abs=1e-4)
    for found in choice.latents:
        assert sum(2.718281828 ** option["logprob"] for option in found["options"]) == pytest.approx(1, abs=1e-4)
        assert found["latent"] in [option["latent"] for option in found["options"]]
    for token in choice.logprobs.content:
        assert token.logprob in [top.logprob for top in token.top_logprobs] and token.logprob <= 0
    own = [*choice.logprobs.content]
    assert len(own) == len(episode.tokens) - (episode.stop == "eos")


def test_completions_go_on_with_a_text(agent, client, episodes):
    session = agent.session
    answer = client.completions.create(
        model="sums", prompt=["1 + 1 =", "2 + 2 ="], temperature=0, max_tokens=5, logprobs=2
    )
    assert [c.index for c in answer.choices] == [0, 1] and answer.usage.completion_tokens <= 10
    assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.text_offset) > 0
    whole = session.prompter.text(
        episodes[0].problem.problem
    )  # begins with the examples, so that it is the task's prompt
    given = client.completions.create(model="sums", prompt=whole, temperature=0)
    assert given.choices[0].text == episodes[0].text
    tokens = [*session.prompter.prefix, *session.prompter.encode(episodes[0].problem)]
    assert client.completions.create(model="sums", prompt=tokens, temperature=0).choices[0].text == episodes[0].text
    streamed = client.completions.create(model="sums", prompt=whole, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in streamed) == episodes[0].text
    assert client.completions.create(model="sums", prompt="", max_tokens=2).usage.prompt_tokens == 1


def test_conversations_of_other_shapes_are_answered(client):
    turns = [*says("1 + 1 = ?"), {"role": "assistant", "content": "2"}, *says("2 + 2 = ?")]
    assert chat(client, "", messages=turns).usage.completion_tokens > 0
    own = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "1 + 1 = ?"}]},
    ]
    assert chat(client, "", messages=own).usage.completion_tokens > 0


def test_models_are_listed(client):
    assert [m.id for m in client.models.list()] == ["sums"]
    assert client.models.retrieve("sums").id == "sums"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"messages": says("1 + " * 2000)}, "context_length_exceeded", "maximum context length"),
        ({"max_tokens": 5000}, "context_length_exceeded", "maximum context length"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"n": 0}, "invalid_value", "n: "),
        ({"stop": ["a"] * 5}, "invalid_value", "stop"),
        ({"top_logprobs": 3}, "invalid_value", "logprobs=true"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"top_p": 0.5}, "unsupported_parameter", "top_p=0.5"),
        ({"extra_body": {"temprature": 0.5}}, "unknown_parameter", "Did you mean 'temperature'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "invalid_value", "messages.0.content"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(client, settings, code, said):
    with pytest.raises(openai.BadRequestError) as error:
        chat(client, "1 + 1 = ?", **settings)
    assert error.value.code == code and said in str(error.value)


def test_settings_that_ask_for_nothing_are_taken(client):
    assert chat(client, "1 + 1 = ?", top_p=1, frequency_penalty=0, user="me", tools=[], max_completion_tokens=3)


def test_errors_have_the_apis_shape(client):
    for body in (
        b"{",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"model": "sums", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b"[]",
    ):
        status, found = post(client, body)
        assert status == 400 and found["error"].keys() == {"message", "type", "param", "code"}, body[:20]
    status, found = post(client, {"model": "sums"})
    assert (status, found["error"]["param"]) == (400, "messages")
    with pytest.raises(openai.NotFoundError, match="expected 'sums'"):
        chat(client, "1", model="other")
    status, found = post(client, {}, "/v1/nothing")
    assert status == 404 and "/v1/chat/completions" in found["error"]["message"]
    status, found = post(client, {}, "/v1/models")
    assert status == 405
    assert post(client, b"x=1", Content_Type="application/x-www-form-urlencoded")[0] == 415
    assert post(client, {}, Host="example.org")[0] == 403
    for origin in ("http://example.org", "http://[", "null"):
        assert post(client, {}, Origin=origin)[0] == 403


def test_a_wrong_key_comes_to_nothing(agent):
    with served(agent, api_key="right") as client:
        assert chat(client, "1 + 1 = ?")
        for given in (
            {},
            *({"Authorization": f"Bearer {key}"} for key in ("wrong", "righ", "rightt", "")),
            {"Authorization": "right"},
        ):
            for body in (b"{", b"x" * 400_000):
                status, found = post(client, body, **given)
                assert (status, found["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            chat(client.with_options(api_key="wrong"), "1 + 1 = ?")
        for path, status in (("/metrics", 401), ("/v1/models", 401), ("/nothing", 401), ("/health", 200)):
            connection = http.client.HTTPConnection("127.0.0.1", client.port)
            connection.request("GET", path)
            assert connection.getresponse().status == status
            connection.close()


def test_junk_does_no_harm(client, episodes):
    junk = bytes(range(256)) * 4096
    status, found = post(client, junk)
    assert (status, found["error"]["code"]) == (413, "request_too_large")
    for begun in (
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n",
        b"GET /" + b"a" * 100_000,
    ):
        with socket.create_connection(("127.0.0.1", client.port)) as raw:
            try:
                raw.sendall(begun + junk)
            except ConnectionError:
                continue
    assert chat(client, episodes[0].problem.problem).choices[0].message.content == episodes[0].text


def test_many_at_once_get_what_each_gets_alone(agent, client):
    problems = [p.problem for p in agent.session.problems("test", 8)]
    asked = [(problems[i % 8], i % 3 / 2, i) for i in range(32)]

    def ask(one, stream=False):
        text, temperature, seed = one
        found = chat(client, text, temperature=temperature, seed=seed, stream=stream)
        if stream:
            return "".join(c.choices[0].delta.content or "" for c in found)
        return found.choices[0].message.content

    alone = [ask(one) for one in asked]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(ask, asked)) == alone
        assert list(pool.map(lambda one: ask(one, True), asked)) == alone
    assert client.api.batcher.active == client.api.batcher.waiting == 0


def test_who_vanishes_frees_its_rows(agent):
    with served(agent, max_text_tokens=1500) as client:
        batcher = client.api.batcher
        for stream in (True, False):
            body = {"model": "sums", "messages": says("1 + 1 = ?"), "max_tokens": 1400, "n": 4, "stream": stream}
            # A text without an end: the tiny model says its end now and then.
            client.api.served.lm.backbone.eos_ids, ends = [], client.api.served.lm.backbone.eos_ids
            batcher._lanes[True].engine.eos_ids = []
            try:
                data = json.dumps(body).encode()
                with socket.create_connection(("127.0.0.1", client.port)) as raw:
                    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                    raw.sendall(head.encode() + data)
                    until(lambda: batcher.active == 4)
                    if stream:
                        assert raw.recv(100)
                until(lambda: batcher.active == 0)
                assert batcher._unfinished == 0
            finally:
                client.api.served.lm.backbone.eos_ids = batcher._lanes[True].engine.eos_ids = ends


def test_a_full_queue_refuses(agent):
    with served(agent, slots=1, max_queue=1) as client:
        with pytest.raises(openai.BadRequestError, match="this server takes 2"):
            chat(client, "1 + 1 = ?", n=3)
        found = []

        def ask(seed):
            try:
                found.append(chat(client, "1 + 1 = ?", n=2, seed=seed, max_tokens=200) and 200)
            except openai.RateLimitError as error:
                found.append(error.status_code)
                assert error.code == "queue_full" and error.response.headers["retry-after"] == "1"

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(16)))
        assert set(found) == {200, 429}
        until(lambda: client.api.batcher._unfinished == 0)
        assert chat(client, "1 + 1 = ?")


def test_who_takes_too_long_is_told(agent):
    with served(agent, timeout_s=1e-6) as client:
        with pytest.raises(openai.APIStatusError) as error:
            chat(client, "1 + 1 = ?")
        assert (error.value.status_code, error.value.code) == (504, "timeout")
        with pytest.raises(openai.APIError, match="serve.timeout_s"):
            list(chat(client, "1 + 1 = ?", stream=True))


def test_an_error_in_the_engine_loses_its_answers_only(agent, monkeypatch):
    with served(agent) as client:
        engine = client.api.batcher._lanes[True].engine
        monkeypatch.setattr(engine, "fork", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError):
            chat(client, "1 + 1 = ?")
        monkeypatch.undo()
        assert chat(client, "1 + 1 = ?").usage.completion_tokens > 0
        assert client.api.batcher._unfinished == 0


def test_metrics(client):
    chat(client, "1 + 1 = ?")

    def page_now():
        return urllib.request.urlopen(f"http://127.0.0.1:{client.port}/metrics").read().decode()

    until(lambda: "ollm_rl_active_answers 0.0" in page_now())  # an answer is under way until its last byte is out
    page = page_now()
    assert re.search(r'ollm_rl_requests_total\{route="/v1/chat/completions",status="200"\} [1-9]', page)
    assert re.search(r"ollm_rl_generated_tokens_total [1-9]", page)
    assert "ollm_rl_time_to_first_token_seconds_bucket" in page


def test_who_drains_takes_nothing_new(agent):
    with served(agent) as client:
        client.api.draining = True
        with pytest.raises(openai.InternalServerError) as error:
            chat(client, "1 + 1 = ?")
        assert (error.value.status_code, error.value.code) == (503, "shutting_down")


def test_writer_holds_back_what_may_be_a_stop_string_and_half_characters():
    data = "aé stop 1".encode()

    def decode(tokens):
        return bytes(tokens).decode(errors="replace")

    writer = Writer(decode, ["sto1", "stop 2"])
    pieces = [writer.add(token) for token in data]
    assert pieces == ["a", "", "é", " ", "", "", "", "", "", "stop 1"]
    assert writer.end() == "" and writer.text == "aé stop 1" and not writer.stopped
    writer = Writer(decode, ["1 2"])
    assert "".join(map(writer.add, data)) == "aé stop " and writer.end() == "1"
    writer = Writer(decode, ["op", "stop"])
    assert "".join(map(writer.add, data)) == "aé " and writer.stopped and writer.end() == ""


def test_what_cannot_be_served_is_refused(agent, tiny):
    with pytest.raises(ConfigurationError, match="api_key"):
        Api(Served.of(agent, ServeConfig(), None), ServeConfig(api_key=" "))
    with pytest.raises(ConfigurationError, match="max_text_tokens"):
        Served.of(agent, ServeConfig(max_text_tokens=5), None)
    with pytest.raises(ConfigurationError, match="policy is a net on the states alone"):
        Served.of(ol.make_agent("local", tiny), ServeConfig(), None)
    with bound("127.0.0.1", 0) as sock:
        sock.listen()
        with pytest.raises(ConfigurationError, match="serve.port"):
            bound("127.0.0.1", sock.getsockname()[1])


def test_an_export_answers_as_its_policy(agent, episodes, tmp_path):
    path = export(agent, tmp_path / "sums", bundle=True)
    config = ServeConfig()
    found, own = Served.exported(str(path), config), Served.of(agent, config, None)
    assert found.name == "sums" and (found.prompter.prefix, found.most, found.max_new_tokens) == (
        own.prompter.prefix,
        own.most,
        own.max_new_tokens,
    )
    for episode in episodes:
        assert found.chat(says(episode.problem.problem)) == own.chat(says(episode.problem.problem))
    told = []
    batcher = Batcher(found.new_engine, found.policy, found.decoder(), 8)
    asked = found.chat(says(episodes[0].problem.problem))
    batcher.submit([Job(asked.tokens, asked.shared, BUDGET, 0, 0.0, (), time.monotonic() + 60, told.append)])
    batcher.close()
    assert [piece.text for piece in told] == [episodes[0].text]
    with pytest.raises(ConfigurationError, match="kind=mixture"):
        Served.exported(str(export(agent, tmp_path / "mixed", kind="mixture", bundle=True)), config)


def test_without_the_extra_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ollm_rl.serving.serve", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "agent=prior", *QUICK_KEYS])
    assert ended.value.code == 2 and "extra `serve`" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.slow
def test_sigterm_lets_answers_end(own_cache, tmp_path):
    command = [
        sys.executable,
        "-m",
        "ollm_rl",
        "serve",
        "agent=prior",
        "port=0",
        "slots=4",
        "max_text_tokens=2000",
        *QUICK_KEYS,
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=os.getcwd(), env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )  # fmt: skip
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("serve: http"):
                break
        assert lines and lines[-1].startswith("serve: http"), "".join(lines)
        client = openai.OpenAI(base_url=lines[-1].split()[1], api_key="any", max_retries=0)
        stream = client.chat.completions.create(
            model="prior", messages=says("1"), stream=True, n=4, max_tokens=300, seed=1
        )
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        ends = {c.choices[0].index: c.choices[0].finish_reason for c in stream if c.choices}
        assert len(ends) == 4 and None not in ends.values()
        assert process.wait(30) == 0 and "serve: ended" in process.stdout.read()
        with pytest.raises(openai.APIConnectionError):
            chat(client, "1")
    finally:
        process.kill()
        process.wait()
