"""Whether `agents`, `envs` and `configs` are this toolkit's: other distributions have top-level packages of these names too."""

from importlib.util import find_spec
from pathlib import Path

import ollm_rl
from ollm_rl.errors import ConfigurationError

BESIDE = ("agents", "envs", "configs")  # installed beside ollm_rl, in the same directory


def check_own_packages() -> Path:
    """The directory that all of them are in.

    Raises:
        ConfigurationError: one of them is another's, or is not there; the message says where the other one is.
    """
    home = Path(ollm_rl.__file__).resolve().parent.parent
    wrong = [f"{name} is {found}" for name in BESIDE if (found := _elsewhere(name, home))]
    if wrong:
        raise ConfigurationError(
            f"a package of the same name hides one of ollm_rl's: {'; '.join(wrong)}; expected all of {', '.join(BESIDE)} in {home}. Run in another "
            "directory or without the other one on PYTHONPATH, rename it if it is yours, or install ollm_rl in an environment of its own."
        )
    return home


def _elsewhere(name: str, home: Path) -> str | None:
    """Where another one of that name is, which an import would find; None if it finds ours."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError) as error:  # a module without a spec, put there by somebody
        return f"not to be found ({error})"
    if spec is None:
        return "missing"
    if spec.origin is None:  # a directory without __init__.py
        places = [str(place) for place in spec.submodule_search_locations or []]
        return f"the directory {', '.join(places)}"
    found = Path(spec.origin).resolve()
    return None if found.parent == home / name else str(found)
