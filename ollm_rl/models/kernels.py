"""What a decode step does besides its matrix products, compiled: `kernels.c`, built by the machine's C compiler when first needed.

Written in PyTorch, norms, rotary embedding, cache writes and attention of one token a row are thirty small calls a layer, which take
as long as the layer's matrix products. Compiled, they are three. The library is kept in the cache directory; a machine without
a compiler decodes as before, and says so once.
"""

import atexit
import ctypes
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ollm_rl.common.cache import cache_dir, key_of

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
LANES = 16  # numbers of a vector: sizes have to be multiples of it


class Kernels:
    """The functions of `kernels.c` for tensors of one precision. Tensors are contiguous unless it says otherwise."""

    def __init__(self, library: ctypes.CDLL):
        p, n, x = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
        self._add_norm, self._gate, self._attend = library.add_norm, library.gate, library.attend
        self._add_norm.argtypes, self._add_norm.restype = (p, p, p, p, x, n, n), None
        self._gate.argtypes, self._gate.restype = (p, p, n, n), None
        self._attend.argtypes = (p, n, p, n, p, n, p, p, p, p, n, p, n, p, p, p, n, n, p, x, n, n, n, n)
        self._attend.restype = ctypes.c_int
        self._top, library.top.restype = library.top, None
        library.top.argtypes = (p, p, p, n, n, n)
        library.paired.restype = n
        self._paired = library.paired()

    def add_norm(self, h: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """Add `delta` (n, d) to `h` (n, d) in place, if there is one; the RMS norm of the sum, times `weight` (d,)."""
        out = torch.empty_like(h)
        n, d = h.shape
        other = 0 if delta is None else delta.data_ptr()
        self._add_norm(h.data_ptr(), other, weight.data_ptr(), out.data_ptr(), eps, n, d)
        return out

    def gate(self, both: Tensor) -> Tensor:
        """silu(a) * b (n, f) of [a | b] (n, 2 f)."""
        n, f = both.shape
        out = both.new_empty(n, f // 2)
        self._gate(both.data_ptr(), out.data_ptr(), n, f // 2)
        return out

    def top(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest numbers (n, k) of each row of x (n, v) and their places, in descending order, of equal ones the first first."""
        n, v = x.shape
        values, places = x.new_empty(n, k), x.new_empty(n, k, dtype=torch.long)
        self._top(x.data_ptr(), values.data_ptr(), places.data_ptr(), n, v, k)
        return values, places

    def prefix_keys(self, keys: Tensor) -> Tensor:
        """A prefix's keys (kv_heads, p, e), transposed and padded with zeros to whole vectors, as `attend` reads them."""
        kv_heads, length, e = keys.shape
        padded = -(-length // LANES) * LANES
        laid = keys.new_zeros(kv_heads, e // self._paired, padded, self._paired)
        laid[:, :, :length] = keys.view(kv_heads, length, e // self._paired, self._paired).transpose(1, 2)
        return laid

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        turns: tuple[Tensor, Tensor] | None,
        keys: Tensor,
        values: Tensor,
        table: Tensor,
        at: Tensor,
        prefix: tuple[Tensor, Tensor] | None,
        scaling: float,
    ) -> Tensor:
        """Attention of new tokens to a shared prefix and to the own tokens of their texts, which they are added to first.

        Args:
            query, key, value: (n, heads, e), (n, kv_heads, e); tokens may stand apart from each other, and be of one text.
            turns: cosines and sines (n, e) of a rotary embedding that query and key do not have yet.
            keys, values: (blocks, kv_heads, b, e). table: (n, m) int64, the blocks that hold a text's tokens, in order; its rows may stand apart.
            at: (n,) int64, the new token's place among its text's own.
            prefix: what `prefix_keys` makes of its keys, and its values (kv_heads, p, e).

        Returns:
            (n, heads, e).
        """
        n, heads, e = query.shape
        out = query.new_empty(n, heads, e)
        cosines, sines = (0, 0) if turns is None else (turns[0].data_ptr(), turns[1].data_ptr())
        shared, given, length, padded = (0, 0, 0, 0)
        if prefix is not None:
            shared, given = prefix[0].data_ptr(), prefix[1].data_ptr()
            length, padded = prefix[1].shape[1], prefix[0].shape[2]
        failed = self._attend(
            query.data_ptr(), query.stride(0), key.data_ptr(), key.stride(0), value.data_ptr(), value.stride(0), cosines, sines,
            keys.data_ptr(), values.data_ptr(), keys.shape[2], table.data_ptr(), table.stride(0), at.data_ptr(), shared, given,
            length, padded, out.data_ptr(), scaling, n, heads, key.shape[1], e,
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for the attention of a decode step")
        return out


def kernels(dtype: torch.dtype) -> Kernels | None:
    """The compiled functions for this precision, or None, with the reason in the log, where they cannot be had."""
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    found = _library(dtype == torch.bfloat16)
    return None if isinstance(found, str) else found


def why_not(dtype: torch.dtype) -> str:
    """Why there are no compiled functions for this precision; empty if there are."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"there are none for {str(dtype).removeprefix('torch.')}"
    found = _library(dtype == torch.bfloat16)
    return found if isinstance(found, str) else ""


@cache
def _library(bf16: bool) -> Kernels | str:
    """The functions, or why there are none."""
    try:
        return Kernels(ctypes.CDLL(str(_built(bf16))))
    except FileNotFoundError as error:
        reason = f"there is no C compiler '{error.filename}' (install gcc, or name one in CC)"
    except subprocess.CalledProcessError as error:
        reason = f"the C compiler ended with {error.returncode}: {(error.stderr.strip() or 'no message').splitlines()[0]:.200}"
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"{type(error).__name__}: {error}"
    log.info("decode steps are not compiled, and take about twice as long: %s", reason)
    return reason


def _built(bf16: bool) -> Path:
    """The library's file, made now if the cache has none of this source, compiler and processor."""
    compiler = os.environ.get("CC", "cc").split() or ["cc"]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    key = key_of(SOURCE.read_text(), FLAGS, bf16, version, platform.machine(), _processor())
    path = cache_dir() / "kernels" / f"{key}.so"
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError:  # a cache that may only be read: built anew in every process
        own = tempfile.mkdtemp(prefix="ollm_rl_kernels_")
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        path, scratch = Path(own) / path.name, tempfile.TemporaryDirectory(dir=own)
    with scratch as made:
        fresh = Path(made) / path.name
        command = [*compiler, *FLAGS, f"-DBF16={int(bf16)}", str(SOURCE), "-o", str(fresh), "-lm"]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        fresh.replace(path)  # whole, or not at all: others may be looking for it
    return path


def _processor() -> Any:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    return [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2] or lines[:1]
