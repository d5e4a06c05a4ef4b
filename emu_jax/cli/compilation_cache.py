"""Save compiled programs on disk, so that the next start of a command does not compile them again.

JAX reads these settings from environment variables when it is imported. Variables that the user has set stay unchanged.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from pathlib import Path

import platformdirs

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
SETTINGS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(2 * 2**30),  # bytes; the programs used least recently are deleted
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # small programs, too
}
SWITCH = "JAX_ENABLE_COMPILATION_CACHE"


def use_compilation_cache() -> None:
    """Set the environment variables of JAX's compilation cache."""
    os.environ.setdefault(DIRECTORY, _default())
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def use_bucket(workdir: str) -> None:
    """Save the programs of a pod in its bucket, `gs://BUCKET/RUN/compiled`: process 0 writes and all processes read.

    Does nothing for a local folder, or if the user chose a folder.
    """
    if workdir.startswith("gs://") and os.environ.get(DIRECTORY) == _default():
        import jax

        jax.config.update("jax_compilation_cache_dir", f"{workdir}/compiled")
        jax.config.update("jax_compilation_cache_max_size", -1)  # a limit requires a lock, which a bucket does not have


def machine() -> str:
    """Return a folder name that differs between types of CPU.

    A program for CPUs uses the instructions of the CPU it was compiled on, which JAX's own key does not contain.
    """
    return hashlib.sha256("\n".join((sys.platform, platform.machine(), *_cpu())).encode()).hexdigest()[:16]


def _default() -> str:
    return str(Path(platformdirs.user_cache_dir("emu_jax")) / "compiled" / machine())


def _cpu() -> tuple[str, ...]:
    """Return the name of the CPU, and its features where the system lists them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return (platform.processor(),)
    # x86 has "model name" and "flags", Arm "CPU part" and "Features".
    lines = re.findall(r"^(model name|CPU (?:implementer|part)|flags|Features)\s*:\s*(.*)$", text, flags=re.MULTILINE)
    return tuple(sorted({f"{name}: {' '.join(sorted(value.split()))}" for name, value in lines}))
