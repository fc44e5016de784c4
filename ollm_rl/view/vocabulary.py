"""What the tokens of a backbone say: rollouts have their numbers, and the page shows them one by one."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from ollm_rl.common.cache import cache_dir
from ollm_rl.errors import OLLMError

log = logging.getLogger(__name__)
TOKENIZER = "tokenizer.json"


def token_texts(backbone: str) -> list[str] | None:
    """The texts of all tokens by number, or None if the tokenizer is not on this machine: nothing is downloaded for it."""
    if (tokenizer := _tokenizer(backbone)) is None:
        return None
    return tokenizer.decode_batch([[i] for i in range(tokenizer.get_vocab_size())], skip_special_tokens=False)


def _tokenizer(backbone: str) -> Any:
    if backbone == "tiny":
        from ollm_rl.models.tiny import tiny_tokenizer

        return tiny_tokenizer().backend_tokenizer
    if (path := _file(backbone)) is None:
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # it raises nothing more special
        log.warning("%s cannot be read (%s): tokens are shown without their texts", path, error)
        return None


def _file(backbone: str) -> Path | None:
    """The tokenizer's file in the cache of ours, in a directory, or in the cache of the hub."""
    from huggingface_hub import try_to_load_from_cache

    places = [Path(backbone).expanduser() / TOKENIZER]
    with suppress(OLLMError):
        places.insert(0, cache_dir() / "backbones" / "smollm2-135m-instruct" / TOKENIZER)
    if backbone == "smollm2":
        return places[0] if places[0].is_file() else None
    if places[-1].is_file():
        return places[-1]
    with suppress(ValueError, OSError):  # no name that the hub could have
        found = try_to_load_from_cache(backbone, TOKENIZER)
        return Path(found) if isinstance(found, str) else None
    return None
