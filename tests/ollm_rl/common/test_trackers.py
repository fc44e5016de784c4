"""What a run on the tiny backbone logs to each tracker, read back from what the tracker has stored, without a network."""

import json
import os
import socket
import struct
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from ollm_rl.cli.app import main
from ollm_rl.common import tracker_clients
from ollm_rl.common.run_dir import Run
from ollm_rl.common.tracker_config import TrackerConfig
from ollm_rl.common.trackers import TRACKER, summary_figures, tracker_of
from ollm_rl.config.compose import compose
from ollm_rl.errors import ConfigurationError
from tests.conftest import QUICK_KEYS

KEYS = [
    *QUICK_KEYS, "agent.num_generations=4", "agent.problems_per_iteration=4", "agent.num_problems=40", "evaluate.samples=0",
    "tracker.rollouts=3", "tracker.project=tests", "tracker.tags=[fast,tiny]",
]  # fmt: skip
BLOCK = 32768  # of the log in which Weights & Biases keeps a run


def needs(package):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed: pip install -e '.[dev]'")


@pytest.fixture(scope="session")
def trackio_folder(tmp_path_factory):
    """Trackio reads its folder when it is imported."""
    folder = tmp_path_factory.mktemp("trackio")
    os.environ["TRACKIO_DIR"] = str(folder)
    yield folder


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch, trackio_folder):
    """A machine without keys on which nobody is reached; it fails if anybody was tried."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    tried, connect = [], socket.socket.connect

    def guarded(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            tried.append(address)
            raise OSError(f"no network in tests, for {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    yield
    assert tried == []


def train(client, name, episodes=32):
    main(["train", *KEYS, f"tracker={client}", f"name={name}", f"agent.total_episodes={episodes}"])
    return Path("runs") / name


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def kept_id(run, client):
    return json.loads((run / TRACKER).read_text())[client]["id"]


def rollouts(run, step):
    return [json.loads(line) for line in (run / "rollouts" / f"train_{step}.jsonl").read_text().splitlines()]


def trained_twice(client, name):
    """A run that was given more episodes later: its directory and its ids after either time."""
    first = kept_id(train(client, name), client)
    run = train(client, name, 64)
    return run, first, kept_id(run, client)


@needs("trackio")
def test_trackio_has_what_the_run_wrote_and_resumes():
    run, first, second = trained_twice("trackio", "first")
    from trackio.sqlite_storage import SQLiteStorage

    assert first == second
    records = [r for r in SQLiteStorage.get_run_records("tests") if r["name"] == "first"]
    assert [r["id"] for r in records].count(first) == 1  # other tests of this process have runs of that name as well
    logged = SQLiteStorage.get_logs("tests", "first", run_id=first)
    for line in lines(run):
        found = {}
        for entry in logged:
            found |= entry if entry["step"] == line["step"] else {}
        assert {key: found[key] for key in line if key != "step"} == pytest.approx(
            {key: value for key, value in line.items() if key != "step"}
        )
    assert {line["step"] for line in lines(run)} == {1, 2, 3, 4}
    results = json.loads((run / "results.json").read_text())
    assert any(entry.get("results/accuracy") == results["rows"][0]["accuracy"] for entry in logged)
    traces = SQLiteStorage.get_traces("tests", "first", run_id=first, step=2)
    mine = [t for t in traces if t["key"] == "rollouts/train"]
    assert len(mine) == 3
    texts = {(e["problem"], e["text"]) for e in rollouts(run, 2)}
    assert {(t["messages"][0]["content"], t["messages"][1]["content"]) for t in mine} <= texts
    config = SQLiteStorage.get_run_config("tests", "first", run_id=first)
    assert config["backbone"]["name"] == "tiny" and config["tags"] == ["fast", "tiny"]


@needs("trackio")
def test_a_comparison_is_a_group_and_a_run_that_is_done_logs_nothing_again():
    call = ["compare", *KEYS, "tracker=trackio", "name=two", "agents=[prior,grpo]", "with_oracle=true"]
    call += ["agent.total_episodes=16"]
    main(call)
    from trackio.sqlite_storage import SQLiteStorage

    def stored():
        names = ("two", "two/prior-0", "two/grpo-0", "two/oracle-0")
        return {name: SQLiteStorage.get_logs("tests", name) for name in names}

    found = stored()
    assert SQLiteStorage.get_run_config("tests", "two/grpo-0")["_Group"] == "two"
    accuracy = json.loads(Path("runs/two/results.json").read_text())["rows"][1]["accuracy"]
    assert any(entry.get("results/grpo-0/accuracy") == accuracy for entry in found["two"])
    assert any(entry.get("results/accuracy") == accuracy for entry in found["two/grpo-0"])
    assert all(found.values())
    main(call)
    assert stored() == found


def records_of(path):
    """The records of a `.wandb` file: its header, then LevelDB's log format with a protobuf in every record."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no header fits into what is left of the block
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + size > len(data):  # still being written
            return
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def finished(path):
    """The records of a run that has ended. `finish` does not wait for wandb's service, which closes the file some milliseconds later."""
    end = time.monotonic() + 60
    while True:
        found = list(records_of(path))
        if any(r.WhichOneof("record_type") == "exit" for r in found):
            return found
        assert time.monotonic() < end, f"{path} has no record of the run's end"
        time.sleep(0.01)


def items(found):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}


@needs("wandb")
def test_wandb_offline_has_what_the_run_wrote_and_resumes():
    run, first, second = trained_twice("wandb", "first")
    assert first == second
    files = sorted(run.glob(f"wandb/offline-run-*-{first}/run-{first}.wandb"))
    assert len(files) == 2  # one a command; `wandb sync` puts those of one id together
    records = [record for file in files for record in finished(file)]
    history = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    by_step = {}
    for row in history:
        by_step[row["step"]] = by_step.get(row["step"], {}) | row
    for line in lines(run):
        assert {key: by_step[line["step"]][key] for key in line} == pytest.approx(line)
    begun = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert {r.run_id for r in begun} == {first} and {r.project for r in begun} == {"tests"}
    assert set(begun[0].tags) == {"fast", "tiny"} and begun[0].display_name == "first"
    config = {u.key: json.loads(u.value_json) for u in begun[0].config.update if u.key}
    assert config["backbone"]["name"] == "tiny"
    summary = {}
    for r in records:
        if r.WhichOneof("record_type") == "summary":
            summary |= items(r.summary.update)
    assert summary["results/accuracy"] == json.loads((run / "results.json").read_text())["rows"][0]["accuracy"]
    tables = {row["step"]: row["rollouts/train/nrows"] for row in history if "rollouts/train/nrows" in row}
    assert tables == {1: 3, 2: 3, 3: 3, 4: 3}
    stored = [
        json.loads(p.read_text()) for p in run.glob("wandb/offline-run-*/files/media/table/rollouts/train_*.json")
    ]
    texts = {e["text"] for step in (1, 2, 3, 4) for e in rollouts(run, step)}
    assert {row[table["columns"].index("text")] for table in stored for row in table["data"]} <= texts


@pytest.mark.slow
@needs("mlflow")
def test_mlflow_has_what_the_run_wrote_and_resumes():
    run, first, second = trained_twice("mlflow", "first")
    from mlflow import MlflowClient

    assert first == second
    client = MlflowClient(f"sqlite:///{Path('runs/mlflow.db').resolve()}")
    found = client.get_run(first)
    assert found.info.status == "FINISHED" and found.info.run_name == "first"
    assert found.data.params["backbone.name"] == "tiny" and found.data.tags["fast"] == "true"
    rewards = {m.step: m.value for m in client.get_metric_history(first, "reward")}
    assert rewards == pytest.approx({line["step"]: line["reward"] for line in lines(run)})
    lengths = {m.step: m.value for m in client.get_metric_history(first, "completions/mean_length")}
    assert lengths == pytest.approx({line["step"]: line["completions/mean_length"] for line in lines(run)})
    results = json.loads((run / "results.json").read_text())
    assert found.data.metrics["results/accuracy"] == results["rows"][0]["accuracy"]
    experiment = client.get_experiment_by_name("tests").experiment_id
    traces = client.search_traces(locations=[experiment], max_results=100)
    mine = [t for t in traces if t.info.tags.get("step") == "2" and t.data.spans[0].name == "rollouts/train"]
    texts = {(e["problem"], e["text"]) for e in rollouts(run, 2)}
    assert len(mine) == 3
    assert {(t.data.spans[0].inputs["problem"], t.data.spans[0].outputs["text"]) for t in mine} <= texts


class Breaks:
    """A client whose server goes away after the first step."""

    id, calls = "one", 0

    def __init__(self, *_):
        pass

    def metrics(self, step, values):
        Breaks.calls += 1
        if step > 1:
            raise ConnectionError("the server went away\nand more")

    def rollouts(self, *_):
        Breaks.calls += 1

    summary = finish = rollouts


def test_a_tracker_that_fails_ends_no_run_and_is_warned_of_once(monkeypatch, caplog):
    monkeypatch.setitem(tracker_clients.CLIENTS, "trackio", Breaks)
    monkeypatch.setattr("ollm_rl.common.tracker_config.find_spec", lambda name: True)
    run = train("trackio", "first")
    assert [line["step"] for line in lines(run)] == [1, 2] and (run / "results.json").exists()
    said = [r.getMessage() for r in caplog.records if "the server went away" in r.getMessage()]
    assert said == [f"tracker trackio failed, and gets no more of {run}: the server went away"]
    assert Breaks.calls == 4  # conversion, metrics and rollouts of step 1, metrics of step 2


@pytest.mark.parametrize("client", ["trackio", "wandb", "mlflow"])
@pytest.mark.parametrize("command", ["train", "compare", "convert"])
def test_a_client_that_is_not_installed_is_said_before_anything_is_made(client, command, monkeypatch, capsys):
    monkeypatch.setattr("ollm_rl.common.tracker_config.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main([command, "backbone=tiny", f"tracker={client}"])
    assert ended.value.code == 2 and not Path("runs").exists()
    assert f"pip install -c constraints.txt -e '.[{client}]'" in capsys.readouterr().err


def test_another_tracker_or_none_continues_a_run(monkeypatch):
    run = train("none", "first", 16)
    assert not (run / TRACKER).exists()
    monkeypatch.setitem(tracker_clients.CLIENTS, "wandb", Breaks)
    monkeypatch.setattr("ollm_rl.common.tracker_config.find_spec", lambda name: True)
    train("wandb", "first", 16)  # done: nothing more is logged but what came of it
    assert kept_id(run, "wandb") == "one"


def test_names_of_runs_and_of_what_came_of_them(tmp_path):
    settings = compose(["backbone=tiny", "tracker=mlflow", f"runs_dir={tmp_path}"])
    part = Run(tmp_path, "three/grpo-0", settings.yaml())
    tracker = tracker_of(settings.yaml(), part.path)
    assert (tracker.name, tracker.root) == ("three/grpo-0", tmp_path)
    elsewhere = tracker_of(settings.yaml(), Path("/somewhere/else"))
    assert elsewhere.name == "else"
    assert tracker_of(compose(["backbone=tiny"]).yaml(), part.path) is None
    rows = [{"agent": "grpo", "seed": 1, "accuracy": 0.5, "sampled": [1, 2], "before": {"accuracy": 0.25}}]
    assert summary_figures("results", {"rows": rows}) == {"results/accuracy": 0.5, "results/before/accuracy": 0.25}
    two = summary_figures("results", {"rows": [*rows, {"agent": "prior", "seed": 0, "accuracy": 0.1}]})
    assert two["results/grpo-1/accuracy"] == 0.5 and two["results/prior-0/accuracy"] == 0.1
    assert summary_figures("conversion", {"coverage": {"all": 1.0}, "objective": "cover"}) == {
        "conversion/coverage/all": 1.0
    }


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match=r"tracker.project=.*expected the name of a project"):
        TrackerConfig(project=" ")
    with pytest.raises(ConfigurationError, match="tracker.rollouts=-1"):
        TrackerConfig(rollouts=-1)
    with pytest.raises(ConfigurationError, match="unknown tracker 'wadb'.*Did you mean"):
        compose(["tracker=wadb"])
