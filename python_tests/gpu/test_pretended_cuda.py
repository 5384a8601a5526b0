"""The programs for a GPU, whole, on one that is pretended: every line of theirs runs, and what they write is complete and right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels run on triton's interpreter, which is not installed")

from optional import peer

from python_tests.gpu.pretended_cuda import CHECKED, NAME
from vtkernels._core.op import OPS

ROOT = Path(__file__).parents[2]


def result_of(program: str, folder: Path, interpret: bool = False) -> dict:
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpret)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "python_tests.gpu.pretended_cuda", program, "--out", folder, "--minutes", "60"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert [path.name for path in folder.iterdir()] == ["pretended"]
    result = json.loads((folder / "pretended" / f"{program}.json").read_text())
    assert (result["wrong"], result["failed"], result["skipped"], result["restarts"]) == ([], {}, [], 0)
    assert result["environment"]["device"] == NAME and result["machine"]["capability"] == "9.0"
    assert result["limits"]["copy_GBps"] > 0
    return result


@pytest.mark.slow
def test_gpu_check_runs_to_its_end(tmp_path):
    result = result_of("gpu_check", tmp_path, interpret=True)
    assert {name.split()[0] for name in result["refused"]} == {op for op in CHECKED if "cuda" in OPS[op].backend_names}
    # by triton and the reference, and SAM's launches, graphs and waits
    assert result["checked"] == 2 * len(CHECKED) + 2 + 2 * 2
    timed = [row for row in result["rows"] if not row["compiled"]]
    assert {(row["op"], row["phase"]) for row in timed} == {(row["op"], phase) for row in timed for phase in ("forward", "backward", "training")}
    assert {row["op"] for row in timed} == {op for op in OPS if "backward" in OPS[op].phases and "triton" in OPS[op].backend_names} - {"jsd_consistency"}
    for row in timed:
        # on a CPU, torch adds up the gradient of a table in bfloat16
        assert set(row["refused"]) <= {"eager", "timm"} and all("d_table" in reason for reason in row["refused"].values()), row
        assert "vtkernels" in row["device_ms"], row
        assert row["peak_extra_bytes"] == 1 << 20
    # of window attention's forward and backward
    variants = [row["device_ms"].keys() for row in timed if row["op"] == "window_attention" and row["phase"] != "training"]
    assert all(sum(name.startswith("kernel, ") for name in names) == 6 for names in variants)
    assert {row["case"] for row in result["sam"]} == {"vit_b, SAM with adamw", "vit_b, SAM with sgd"}
    assert all("vtkernels (triton)" in row["share_of_copy"] for row in result["sam"])


@pytest.mark.slow
def test_gpu_models_runs_to_its_end(tmp_path):
    peer("timm")
    result = result_of("gpu_models", tmp_path)
    assert [row["mode"] for row in result["rows"]] == ["inference", "training"]
    for row in result["rows"]:
        assert row["refused"] == {}
        assert set(row["peak_GB"]) == set(row["images_per_second"]) >= {"timm", "timm + vt.accelerate", "vtkernels"}
