"""Which precision is the better one on a device."""

import contextlib
import json
import platform
import time
from functools import cache
from pathlib import Path

import torch

from ollm_rl.common.cache import cache_dir


@cache
def prefer_bf16(device: torch.device) -> tuple[bool, str]:
    """Whether bf16 is the better precision on `device`, and the reason in words.

    It is where its arithmetic is native and no slower than float32's. On a CPU that is measured once a machine and kept
    in the cache directory, for cached hidden states and plug-ins belong to a precision: with AMX bf16 is several times
    faster, but on some processors AVX-512's bf16 products take twice as long as float32's.
    """
    if device.type == "cuda":
        ok = torch.cuda.is_bf16_supported(including_emulation=False)
        return ok, f"{torch.cuda.get_device_name(device)} {'has' if ok else 'lacks'} native bf16"
    if device.type != "cpu":
        return False, f"bf16 is not checked on {device.type}"
    caps = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    kind = "AMX" if caps.get("amx_bf16") else "AVX-512" if torch.cpu._is_avx512_bf16_supported() else ""
    if not kind:
        return False, "the processor has no native bf16"
    ratio = _bf16_speed()
    return ratio >= 1, f"the processor has native bf16 ({kind}), {ratio:.1f} times as fast as float32"


def _bf16_speed() -> float:
    """How many times as fast as float32 bf16 products are on this processor; measured when first asked."""
    path = cache_dir() / "bf16_speed.json"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    key = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):  # not there yet, or half written by another process
        known = {}
    if key not in known:  # two processes at once measure each other's load as well, in both precisions
        shortest = _shortest_products((torch.float32, torch.bfloat16))
        known[key] = shortest[0] / shortest[1]
        with contextlib.suppress(OSError):  # a cache that may only be read: measured again the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(known, indent=2) + "\n")
    return known[key]


def _shortest_products(dtypes: tuple[torch.dtype, ...], repeats: int = 200) -> list[float]:
    """Shortest times of a matrix product of the size that decoding has, in each precision: in turns, about 0.5 s."""
    factors = [(torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)) for dtype in dtypes]
    times: list[list[float]] = [[] for _ in dtypes]
    for _ in range(repeats):
        for (x, weight), found in zip(factors, times, strict=True):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            found.append(time.perf_counter() - start)
    return [min(found) for found in times]
