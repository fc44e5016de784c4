"""What is typed on the command line: any text where a text is expected, and one clear message for all that cannot be."""

import json
import os
import random

import pytest
from omegaconf import OmegaConf

from ollm_rl.cli.app import main
from ollm_rl.cli.sweep import combinations
from ollm_rl.common.config_files import GROUPS, known_settings
from ollm_rl.config.checks import check_values
from ollm_rl.config.compose import compose, preflight
from ollm_rl.errors import ConfigurationError, OLLMError
from tests.conftest import QUICK_KEYS

ODD = [
    "/tmp/a=b,c/it's (1).jsonl", "/tmp/a b", "/tmp/#1", "/tmp/a:b", "/tmp/[x]", "/tmp/{x}", "/tmp/$x", "/tmp/x&y;z|", '/tmp/"x"', "/tmp/'",
    "/tmp/a\\b", "/tmp/~x", "/tmp/50%", "/tmp/!*?", "/tmp/ü€", "/tmp/a,", "/tmp/(", "/tmp/]", "-x", "5", "true", "1e3", "a,b", "x=y=z",
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nothing_starts(monkeypatch):
    def started(*_, **__):
        raise AssertionError("the run has begun")

    monkeypatch.setattr("ollm_rl.common.run_dir.Run.__init__", started)
    monkeypatch.setattr("ollm_rl.session.opening.open_session", started)


@pytest.mark.parametrize("value", ODD)
def test_texts_and_paths_are_taken_as_they_stand(value):
    keys = ["task.path", "plugin.path", "policy", "runs_dir", "oracle.critic"]
    config = compose(["task=jsonl", f"backbone={value}", *(f"{key}={value}" for key in keys)]).config
    assert [OmegaConf.select(config, key) for key in (*keys, "backbone.name")] == [value] * 6
    assert OmegaConf.create(compose([f"policy={value}"]).yaml()).policy == value  # as a run keeps it


def test_quotes_null_and_references_keep_their_meaning():
    config = compose(
        ["name='a b'", "policy=null", "runs_dir=${name}/x", 'plugin.path="it\'s"', "backbone.revision='null'"]
    ).config
    assert (config.name, config.policy, config.runs_dir, config.plugin.path) == ("a b", None, "a b/x", "it's")
    assert config.backbone.revision == "null"
    with pytest.raises(ConfigurationError, match=r"seed=\$\{runs_dir\}; expected an integer"):
        compose(["seed=${runs_dir}"])
    assert compose(["seed=${evaluate.samples}"]).config.seed == 8


def test_of_several_choices_in_a_group_the_last_counts():
    settings = compose(["agent=ppo", "backbone=/x", "agent=prior", "backbone=tiny"])
    assert settings.choices["agent"] == "prior" and settings.config.backbone.name == "tiny"


def test_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [
        "task=jsonl",
        "task.path=~/x.jsonl",
        "plugin.path=~/p",
        "policy=~",
        "backbone=~/b",
        "runs_dir=~/r",
        "oracle.critic=~/c",
    ]
    config = compose([*given, "agent=ppo", "agent.path=~/a"]).config
    found = (
        config.task.path,
        config.plugin.path,
        config.policy,
        config.backbone.name,
        config.runs_dir,
        config.oracle.critic,
        config.agent.path,
    )
    assert found == tuple(str(tmp_path / x) for x in ("x.jsonl", "p", ".", "b", "r", "c", "a"))
    assert compose(["policy=~nobody-of-that-name/x"]).config.policy == "~nobody-of-that-name/x"


def test_a_run_whose_paths_hold_all_that_a_shell_has(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "a=b,c" / "it's (1) #2 [x] {y} $z"
    folder.mkdir(parents=True)
    rows = [{"problem": f"\n  {i}+1?\t", "answer": i + 1, "solution": f"{i + 1}"} for i in range(120)]
    (folder / "data, all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = f"~/{folder.relative_to(tmp_path)}"
    main(
        [
            "evaluate",
            "agent=prior",
            "task=jsonl",
            f"task.path={path}/data, all.jsonl",
            f"runs_dir={path}/runs",
            "name=it's one",
            *QUICK_KEYS,
        ]
    )
    assert (folder / "runs" / "it's one" / "results.json").exists()


def test_a_path_with_a_comma_is_one_path_and_files_that_are_there_are_several(tmp_path):
    for name in ("a", "b", "c,d"):
        (tmp_path / name).touch()
    assert len(combinations(["task.path=c,d"])) == 1
    assert len(combinations(["task.path=a,b"])) == 2
    assert len(combinations(["task.path=a,x"])) == 1 and len(combinations(["runs_dir=a,b"])) == 1
    assert len(combinations(["backbone=org/a,org/b"])) == 2 and len(combinations(["backbone=./x,y"])) == 1


NAMES = ["x" * 300, "ü" * 200, "a/" + "x" * 300, "..", "../x", "a/../b", "a/..", ".", "", " ", "\t", "-x", "a/-x", "/abs", "a//b", "a/", " a", "a\nb", "a\x1b[31m", "a\x00b"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_cannot_be_directories(name, nothing_starts, tmp_path, capsys):
    command = ("evaluate", "compare", "evaluate --dry-run")[NAMES.index(name) % 3]
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "backbone=tiny", f"name={name}"])
    assert stopped.value.code == 2
    assert "name" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("seed", "cannot read 'seed'; expected key=value"), ("q}", "agent=grpo. Put quotes around what has brackets"), ("=x", "cannot read '=x'"), (" =x", "cannot read ' =x'"), ("", "cannot read ''"),
        ("seed=", "seed= has no value; expected an integer from 0"), ("~seed", "cannot read '~seed'"), ("~seed=1", "unknown key '~seed'"),
        ("+sead=1", "Did you mean 'seed'?"), ("agents=[1,", "cannot read agents=[1,; expected a list such as [prior,grpo]"),
        ("arms={a:[agent=grpo]}", "A text with = in it needs quotes: ['agent=grpo']"),
        ("agents={a:1", "expected a list"), ('agents="abc', "expected a list"), ("agents=grpo", "agents=grpo; expected a list such as"),
        ("agents=[]", "expected at least one"), ("agents=[[grpo]]", "expected a list such as"), ("agents=[null]", "expected a list such as"),
        ("agents=[grpo,prior,grpo]", "has grpo twice"), ("seeds=[0,0]", "has 0 twice"), ("seeds=[a]", "seeds=[a]; expected a list such as [0]"), ("seeds=[1.5]", "expected a list such as [0]"),
        ("seeds=[true]", "expected a list such as [0]"), ("seeds=[]", "at least one"), ("seed=1e3", "seed=1e3; expected an integer"), ("seed=true", "expected an integer"),
        ("seed=-1", "an integer from 0"), ("seed=99999999999999999999", "an integer from 0"), ("seed=1.0", "expected an integer"),
        ("seed=[1", "cannot read seed=[1"), ("seed=1 #2", "cannot read"), ("seed='1'", "expected an integer"), ("seed=null", "expected an integer"),
        ("seed=choice(1,2)", "holds several values"), ("seed=${nothing}", "does not resolve"), ("seed=${", "cannot"), ("seed=${seed}", "resolve"),
        ("runs_dir=${", "cannot"), ("runs_dir=null", "expected a text such as runs"), ("runs_dir=''", "expected a directory"), ("quick=1", "true or false"),
        ("convert.learning_rate=nan", "a finite number"), ("convert.learning_rate=inf", "a finite number"), ("backbone.shape=3", "backbone.shape"),
        ("backbone.device=gpu", "backbone.device=gpu; expected auto"), ("backbone.dtype=fp16", "float32"), ("evaluate.split=tset", "Did you mean 'test'?"),
        ("evaluate={a:1}", "is a group of settings"), ("task=chain_sums", "Did you mean 'chain_sum'?"), ("agent=", "unknown agent ''"), ("backbone=", "unknown backbone"),
        ("agent=.", "unknown agent '.'"), ("agent=.x", "unknown agent '.x'"), ("agent=math.pi", "no class or function"), ("agent=a..b", "unknown agent 'a..b'"),
        ("agents.0=x", "unknown key"), ("agents[0]=x", "unknown key"), ("seed.x=1", "unknown key"), (".seed=1", "unknown key"), ("hydra.run.dir=x", "unknown key"),
        ("tasks=[1]", "expected a list such as"), ("agent_overrides=[1]", "expected a list such as"), ("name=\udc80", "is not a UTF-8 text"), ("k" * 300 + "=1", "unknown key"),
        ("resume=maybe", "expected one of auto, never, must"),
    ],
)  # fmt: skip
def test_mistakes_are_named(given, words, nothing_starts, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "compare" if given.startswith(("agents", "seeds")) else "inspect",
                "backbone=tiny",
                given,
            ]
        )
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert words in said and said.count("error:") == 1 and len(said) < 1200


@pytest.mark.parametrize(
    "given",
    [
        "agent.problems_per_iteration=0", "evaluate.num_problems=0", "evaluate.samples=-1", "agent.total_episodes=-1", "engine.max_new_tokens=0",
        "engine.num_slots=-1", "task.max_new_tokens=0", "task.num_examples=-1", "convert.num_solutions=0", "convert.batch_size=0", "oracle.budget=0",
        "oracle.slots=0", "oracle.num_problems=-3", "plugin.num_options=0", "agent.minibatches=0", "agent.save_every=0", "rollout.chunk=0",
        "oracle.width=0", "oracle.max_seconds=soon", "plugin.encoder_depth=-1", "rollout.num_workers=-1", "inspect.num_problems=0",
    ],
)  # fmt: skip
def test_numbers_of_nothing_are_refused_before_anything_starts(given, nothing_starts, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "backbone=tiny", given])
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert given in said and "expected" in said
    assert not any(tmp_path.iterdir())


def test_a_class_of_the_users_own_may_count_as_it_likes():
    settings = compose(
        ["agent._target_=collections.Counter", "agent.total_episodes=-1", "agent.path=~x [y", "agent.rank=none"]
    )
    check_values(settings.config, settings.choices)
    assert settings.config.agent.path == "~x [y"


def test_directories_that_cannot_be_written_are_said_before_anything_starts(
    nothing_starts, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").touch()
    for given, cache in (
        ("runs_dir=file", "ok"), ("runs_dir=file/x", "ok"), ("runs_dir=/proc/x", "ok"), ("runs_dir=" + "x" * 300, "ok"),
        ("runs_dir=" + "y/" * 2500, "ok"), ("name=a", "file"), ("name=a", "file/x"), ("name=a", "/proc/x/y"), ("name=a", "z" * 300),
        ("runs_dir=a\tb", "ok"),
    ):  # fmt: skip
        monkeypatch.setenv("OLLM_RL_CACHE", cache)
        with pytest.raises(SystemExit) as stopped:
            main(["train", "backbone=tiny", given])
        assert stopped.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert ("OLLM_RL_CACHE" if cache != "ok" else "runs_dir") in said and len(said) < 900
    assert os.listdir(tmp_path) == ["file"]


VALUES = [
    "0", "-1", "1e3", "1.5", "nan", "true", "null", "", "abc", "~", "~/x", "[", "[1,", "[]", "[a]", "[a,a]", "[[1]]", "{", "{a:1", "{a:1}", '"abc', "'", "''",
    "a=b", "a,b", "a:b", "$", "${", "${x}", "${seed}", "${oc.env:NOTHING}", "${.}", "#", "a #b", "(", ")", "choice(1,2)", "range(3)", "x" * 300, "x/" * 2500,
    "..", "/", "a\x00b", "a\nb", "\\", "a\\,b", "ü", "\ud800", "???", "*", "@", "!", "-", "--x", " ", "a b", "0x10", "9" * 40, "&a", "*a", "%", "|", ">", "builtins.int",
]  # fmt: skip
KEYS = [
    "name",
    "seeds",
    "agents",
    "runs_dir",
    "nothing",
    "agent.",
    ".agent",
    "agent..x",
    "~seed",
    "+seed",
    "++agent.x",
    "a b",
    "seed[0]",
    "seed@x",
    "${seed}",
    "",
    "-",
]
PREFIXES = [[], ["agent._target_=collections.Counter"], ["task=jsonl"], ["task=reasoning_gym"], ["agent=ppo"], ["reward=custom"], ["experiment=headline"]]  # fmt: skip


def unreachable(*_, **__):
    raise OSError("no such model")


@pytest.mark.slow
def test_nothing_that_is_typed_ends_in_a_traceback(capsys, monkeypatch):
    """Random keys and values, in a dry run and in the checks before a run, end well or in one of our errors."""
    monkeypatch.setattr(
        "ollm_rl.config.compose.make_task", lambda **settings: None
    )  # generates problems: too slow for so many
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    draw = random.Random(0)
    known = [*KEYS, *GROUPS, *known_settings(compose(["agent=ppo", "task=jsonl"]).choices)]
    given = [[*draw.choice(PREFIXES), f"{draw.choice(known)}={draw.choice(VALUES)}"] for _ in range(80)]
    for overrides in given:
        try:
            command = draw.choice(("train", "compare", "oracle"))
            main([command, "--dry-run", "backbone=tiny", "estimate.measure=false", *overrides])
            preflight(compose(["backbone=tiny", *overrides]))
        except OLLMError as error:
            assert str(error), overrides
        except SystemExit as stopped:
            assert stopped.code == 2, overrides
            assert capsys.readouterr().err.count("error:") == 1, overrides
