"""docs/map.md: one line for every file, from its own first line. `python docs/make_map.py > docs/map.md`."""

import ast
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """# Where everything is

One line for every file, from the file itself (`python docs/make_map.py > docs/map.md`; a test keeps it true). Imports point downwards
only: agents, envs, ollm_rl; within ollm_rl as `tests/test_layers.py` has it. Tests mirror the tree.

"""
SHOWN = ("ollm_rl", "envs", "agents", "configs", "tutorials", "examples", "docs", "benchmarks", "extras", "tests")


def page() -> str:
    """The whole page."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    files = [Path(f) for f in listed if f.split("/")[0] in SHOWN and "fixtures" not in f and (ROOT / f).exists()]
    files.remove(Path("docs/map.md"))  # while it is written it is empty
    folders: dict[Path, list[Path]] = {}
    for path in sorted(files):
        if path.suffix in (".py", ".yaml", ".md") and (path.parts[0] != "benchmarks" or len(path.parts) == 2):
            folders.setdefault(path.parent, []).append(path)
    parts = [HEAD]
    for folder in sorted(folders, key=lambda p: (SHOWN.index(p.parts[0]), p)):
        about = folder / "__init__.py"
        said = f": {first_line(about)}" if about in folders[folder] and first_line(about) else ""
        rows = [f"- `{path.name}`: {first_line(path)}" for path in folders[folder] if path.name != "__init__.py"]
        if rows:
            parts.append(f"## {folder}/{said}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def first_line(path: Path) -> str:
    """What a file says of itself."""
    text = (ROOT / path).read_text()
    if path.suffix == ".py":
        if text.startswith("# %%"):  # a notebook
            return text.split("\n")[1].lstrip("# ")
        said = ast.get_docstring(ast.parse(text)) or ""
        return " ".join(said.split("\n\n")[0].split())
    lines = [line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line]
    if path.suffix == ".md":
        return lines[0] if lines else ""
    return lines[0] if lines else ", ".join(line for line in text.splitlines() if line.strip())[:100]


if __name__ == "__main__":
    print(page(), end="")
