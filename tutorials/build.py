"""The pages of the tutorials, with outputs: runs each notebook on SmolLM2 and writes docs/tutorials/<name>.md and its pictures.

    pip install -c constraints.txt -e '.[dev,tutorials]'
    python tutorials/build.py [2_options ...]       # by default all of them; JSON with the seconds of each in the last line

Notebooks are plain Python in jupytext's percent format; runs of theirs go to runs/tutorials. Progress, which is on stderr, is left out.
`TUTORIAL_BACKBONE=tiny` tries it in seconds (with --out elsewhere, for the site shows SmolLM2).
"""

import argparse
import json
import re
import shutil
import textwrap
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SETUP = "%config InlineBackend.figure_formats = ['png']\n%config InlineBackend.rc = {'figure.dpi': 80}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.stem for path in (ROOT / "tutorials").glob("[0-9]_*.py"))
    parser.add_argument("names", nargs="*", default=names, metavar="name", choices=[*names, names])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "tutorials")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for name in args.names:
        start = time.monotonic()
        build(name, args.out)
        seconds[name] = round(time.monotonic() - start)
        print(f"{name}: {seconds[name]} s", flush=True)
    print(json.dumps(seconds))


def build(name: str, out: Path) -> None:
    """Run one notebook from the beginning, and write its page."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import MarkdownExporter

    work = ROOT / "runs" / "tutorials" / name
    shutil.rmtree(work, ignore_errors=True)  # a finished run would only be read again
    work.mkdir(parents=True)
    notebook = jupytext.read(ROOT / "tutorials" / f"{name}.py")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    del notebook.cells[0]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = shown([output for output in cell.outputs if output.get("name") != "stderr"], work)
    body, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": ".", "unique_key": name})
    for old in out.glob(f"{name}_*.png"):
        old.unlink()
    for place, picture in resources["outputs"].items():
        (out / Path(place).name).write_bytes(picture)
    body = re.sub(r"!\[png\]\((?:\./)?(.*?)\)", r"![the figure that this cell draws](\1)", body)
    (out / f"{name}.md").write_text(fenced(body).strip() + "\n")


def fenced(body: str) -> str:
    """What cells print as fenced blocks, where the exporter indents it."""

    def fence(block: re.Match[str]) -> str:
        text = textwrap.dedent(block[0]).strip("\n")
        return f"```text\n{text}\n```\n" if text.strip() else "\n"

    parts = re.split(r"(^```.*?^```$)", body, flags=re.M | re.S)
    parts = [p if p.startswith("```") else re.sub(r"(?:^    .*\n)+", fence, p, flags=re.M) for p in parts]
    return "".join(p if p.startswith("```") else re.sub(r"\n{3,}", "\n\n", p) for p in parts)


def shown(outputs: list[Any], work: Path) -> list[Any]:
    """What was printed in one piece, without colours and the paths of this machine."""
    import nbformat

    found: list[Any] = []
    for output in outputs:
        data = output.get("data", {})
        if "<pre" in data.get("text/html", ""):  # a table of rich, or a line of the log, which is no output
            if re.search(r"\[\d\d/\d\d/\d\d", data["text/plain"]):
                continue
            output = nbformat.v4.new_output("stream", text=data["text/plain"])
        if output.output_type == "stream":
            text = re.sub(r"\x1b\[[0-9;]*m", "", output.text)
            output.text = text.replace(f"{work}/", "").replace(str(Path.home()), "~")
            if found and found[-1].output_type == "stream":
                found[-1].text += output.text
                continue
        found.append(output)
    return found


if __name__ == "__main__":
    main()
