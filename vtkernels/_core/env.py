"""The environment variables the library reads, each in one place.

`VTKERNELS_BACKEND`  default of every op's `backend` argument (an explicit argument beats it)
`VTKERNELS_ISA`      highest instruction set the native kernels may use: avx512_bf16, avx512, avx2 or portable
`VTKERNELS_NATIVE`   0 keeps the native library from being loaded
`VTKERNELS_RECYCLE`  MB of memory for large CPU results that may lie idle between calls (default 512); 0 switches recycling off
`VTKERNELS_TUNED`    folder of the launch parameters measured here (default ~/.cache/vtkernels/tuned); 0 ignores all measured ones
`VTKERNELS_MEASURE`  0 chooses between backends without measuring which is faster here
"""

import os
from pathlib import Path

ISA_NAMES = ("portable", "avx2", "avx512", "avx512_bf16")


def default_backend() -> str:
    return os.environ.get("VTKERNELS_BACKEND", "auto")


def isa_limit() -> str:
    return os.environ.get("VTKERNELS_ISA") or ISA_NAMES[-1]


def native_enabled() -> bool:
    return os.environ.get("VTKERNELS_NATIVE", "1") != "0"


def measuring() -> bool:
    return os.environ.get("VTKERNELS_MEASURE", "1") != "0"


def recycled_megabytes() -> int:
    value = os.environ.get("VTKERNELS_RECYCLE") or "512"
    if not value.isdigit():
        raise ValueError(f"VTKERNELS_RECYCLE must be a number of MB, got {value!r}; 0 switches the recycling of large CPU results off")
    return int(value)


def tuned() -> bool:
    return os.environ.get("VTKERNELS_TUNED") != "0"


def tuned_folder() -> Path:
    given = os.environ.get("VTKERNELS_TUNED")
    if given and given != "0":
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vtkernels" / "tuned"
