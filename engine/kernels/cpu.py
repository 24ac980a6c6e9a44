"""cpu.cpp, compiled on the machine that runs it: what CUDA has in Triton, for a CPU.

Without a C++ compiler the layers and the attention do the same in plain torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import mmap
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

logger = logging.getLogger(__name__)

_making = threading.Lock()

SOURCE = Path(__file__).with_name("cpu.cpp")
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math"),  # else no loop with a floor or root is vectorised
)
DTYPES = (torch.float32, torch.bfloat16)
_LONGEST = 512  # elements of a head
_WIDE = {torch.float32: 48, torch.bfloat16: 32}  # columns of a panel
_STEP = {torch.float32: 8, torch.bfloat16: 32}  # what a panel's depth is a multiple of


class Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("queries", "kv", "dim", "block_size")]


_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float, "s": Sizes}
_FUNCTIONS = {
    "product": "ppppnnn",
    "add_rms_norm": "pppppnnf",
    "silu_gate": "ppnn",
    "turn_and_store": "ppppnppnppfns",
    "decode": "pppnpnpnsnff",
}
"""Their parameters' types in cpu.cpp, without `bf16` in front and `threads` at the end."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, kept from run to run; None, and it is logged why, where they cannot
    be made."""
    with _making:  # ranks may be threads, and must all come to the same answer
        return _made()


def _made() -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, _compilers())), None)
    if compiler is None:
        logger.warning("No C++ compiler (g++ or $CXX): the engine runs uncompiled, and slower")
        return None
    built = _cache() / f"cpu-{_fingerprint(compiler)}.so"
    try:
        if not built.exists():
            _compile(compiler, built)
        return _declared(ctypes.CDLL(str(built)))
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [str(error)]
        logger.warning("%s failed: the engine runs uncompiled, and slower: %s", compiler, said[0])
    except OSError as error:
        logger.warning("The engine runs uncompiled, and slower: %s", error)
    return None


def _declared(kernels: ctypes.CDLL) -> ctypes.CDLL:
    for name, letters in _FUNCTIONS.items():
        types = (ctypes.c_int, *(_TYPES[letter] for letter in letters), ctypes.c_int)
        getattr(kernels, f"engine_{name}").argtypes = types
    return kernels


def serves(tensor: torch.Tensor) -> bool:
    """Whether the functions below take it."""
    return not tensor.is_cuda and tensor.dtype in DTYPES and library() is not None


def attends(cache: torch.Tensor) -> bool:
    """Whether `decode` takes it: KVLayout's, of heads that are not too long."""
    return serves(cache) and cache.shape[-1] <= _LONGEST


def multiplies(weight: torch.Tensor) -> bool:
    """Whether `panels` and `product` take it: fp32 needs AVX-512, bf16 AMX."""
    whole = weight.shape[1] % _STEP[weight.dtype] == 0 if weight.dtype in DTYPES else False
    return whole and serves(weight) and bool(_multiplies(weight.dtype == torch.bfloat16))


def panels(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] in the order that `product` reads it: cpu.cpp's Fma and Tiles say which."""
    assert multiplies(weight)  # it asks the system for the tiles
    out, size = weight.shape
    wide = _WIDE[weight.dtype]
    count = -(-out // wide)
    padded = functional.pad(weight, (0, 0, 0, count * wide - out))
    if weight.dtype == torch.float32:
        ordered = padded.view(count, wide, size).transpose(1, 2)
    else:
        ordered = padded.view(count, 2, 16, size // 32, 16, 2).permute(0, 3, 1, 4, 2, 5)
    return in_huge_pages(ordered.new_empty(ordered.shape)).copy_(ordered)


def product(
    inputs: torch.Tensor, packed: torch.Tensor, columns: int, bias: torch.Tensor | None
) -> torch.Tensor:
    """[rows, in] -> [rows, columns], for the `panels` of a weight [columns, in]."""
    inputs = inputs.contiguous()
    rows, size = inputs.shape
    out = inputs.new_empty(rows, columns)
    _call("product", inputs, packed, bias, out, rows, size, columns)
    return out


def in_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    """Itself, its memory in pages of 2 MiB where the system has them and it was not written yet:
    a step reads all weights, and finding 4 KiB pages takes as long as reading some."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = max(0, tensor.data_ptr() + tensor.nbytes - first)
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
    return tensor


def add_rms_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """rms_norm(x + delta) and x + delta, both [tokens, size]; neither argument is changed."""
    x = x.contiguous()
    delta = None if delta is None else delta.contiguous()
    normed = torch.empty_like(x)
    total = x if delta is None else torch.empty_like(x)
    _call("add_rms_norm", x, delta, weight, normed, total, *x.shape, eps)
    return normed, total


def silu_gate(gate_and_up: torch.Tensor) -> torch.Tensor:
    """[tokens, 2n], gate first -> [tokens, n]."""
    rows, size = gate_and_up.shape[0], gate_and_up.shape[1] // 2
    out = gate_and_up.new_empty(rows, size)
    _call("silu_gate", gate_and_up.contiguous(), out, rows, size)
    return out


def turn_and_store(
    heads: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor] | None,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
) -> None:
    """Norm and rotation of queries and keys, in place in `heads` [tokens, queries + 2 kv, dim];
    keys and values into the token `slots` of `cache` (KVLayout's). `positions` and `slots` are
    int64, `angles` fp32 cos and sin."""
    cos, sin = angles or (None, None)
    query_norm, key_norm = (norm.float() for norm in norms) if norms else (None, None)
    half = 0 if cos is None else cos.shape[1]
    num_slots = cache.shape[1] * cache.shape[2]
    tensors = (heads, positions, slots, cache, num_slots, cos, sin, half, query_norm, key_norm)
    _call("turn_and_store", *tensors, eps, heads.shape[0], _sizes(heads, cache))


def decode(
    heads: torch.Tensor,
    positions: torch.Tensor,
    tables: torch.Tensor,
    cache: torch.Tensor,
    out: torch.Tensor,
    window: int | None,
    softcap: float | None,
    scale: float,
) -> None:
    """The first len(tables) tokens' queries against their requests' past, which `tables` (int32
    block numbers) names, into the same rows of `out` [tokens, queries, dim]."""
    rows, width = tables.shape
    num_slots = cache.shape[1] * cache.shape[2]
    tensors = (heads, positions, tables, width, cache, num_slots, out, rows, _sizes(heads, cache))
    _call("decode", *tensors, window or 0, softcap or 0.0, scale)


def _sizes(heads: torch.Tensor, cache: torch.Tensor) -> Sizes:
    block_size, kv, dim = cache.shape[2:]
    return Sizes(heads.shape[1] - 2 * kv, kv, dim, block_size)


@functools.cache
def _multiplies(bf16: bool) -> bool:
    kernels = library()
    return kernels is not None and bool(kernels.engine_multiplies(bf16))


def _call(name: str, first: torch.Tensor, *arguments: object) -> None:
    """With addresses for tensors, after whether it is bf16 and before the number of threads."""
    given = (one.data_ptr() if isinstance(one, torch.Tensor) else one for one in arguments)
    bf16, threads = first.dtype == torch.bfloat16, torch.get_num_threads()
    getattr(library(), f"engine_{name}")(bf16, first.data_ptr(), *given, threads)


def _compilers() -> Sequence[str]:
    return [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "c++", "clang++"]


def _cache() -> Path:
    beside = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # where deployments keep what is compiled
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "infercluster"
    return (Path(beside) if beside else home) / "engine"


def _fingerprint(compiler: str) -> str:
    """Of all that decides what is built: a cache may be shared by machines that differ."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    features = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    parts = (SOURCE.read_text(), *FLAGS, compiler, torch.__version__, features)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, built: Path) -> None:
    """It appears whole, by a rename: ranks in several containers may do this at once, under one
    number of a process."""
    built.parent.mkdir(parents=True, exist_ok=True)
    file, scratch = tempfile.mkstemp(dir=built.parent, suffix=".part")
    os.close(file)
    # torch's own OpenMP, where it brings one: two of them would fight over the cores.
    openmp = sorted(Path(torch.__file__).parent.glob("lib/libgomp*"))[:1]
    command = [compiler, *FLAGS, str(SOURCE), *map(str, openmp), "-o", scratch]
    subprocess.run(command, check=True, capture_output=True, text=True)
    os.replace(scratch, built)
