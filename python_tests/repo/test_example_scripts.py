"""The shell scripts of examples/ begin a run, or go on with the one that is there; without a GPU, by what they call."""

import os
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CALLED = ("vtkernels", "torchrun", "nvidia-smi", "scontrol", "srun")


def calls(script: str, folder: Path, *arguments: str) -> list[str]:
    """The command lines of a script whose commands do nothing but write theirs down."""
    tools, log = folder / "tools", folder / "calls"
    tools.mkdir(exist_ok=True)
    log.write_text("")
    for name in CALLED:
        # as many lines as there are GPUs, or machines
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\necho first\n')
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "first", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "8"}
    environment = os.environ | slurm | {"PATH": f"{tools}:{os.environ['PATH']}", "FOLDER": str(folder / "run")}
    done = subprocess.run(["bash", EXAMPLES / script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


@pytest.mark.parametrize("script", ["train_one_gpu.sh", "train_eight_gpus.sh", "train_slurm.sbatch"])
@pytest.mark.parametrize("checkpoint", ["last.pt", "last"])
def test_a_script_goes_on_with_its_run(script, checkpoint, tmp_path):
    begun = calls(script, tmp_path, "images", "smoke", "--optim.lr", "0.1")
    assert sum(f"train smoke --folder {tmp_path}/run --data.path images" in line for line in begun) == 1
    assert all("--optim.lr 0.1" in line for line in begun if " train " in line)
    run = tmp_path / "run"
    run.mkdir()
    # of a sharded run a folder
    (run / checkpoint).touch() if checkpoint.endswith(".pt") else (run / checkpoint).mkdir()
    again = calls(script, tmp_path, "images", "smoke", "--optim.lr", "0.1")
    assert sum(f"train --resume {tmp_path}/run" in line for line in again) == 1
    assert not any("train smoke --folder" in line for line in again)


def test_a_script_says_what_it_lacks(tmp_path):
    done = subprocess.run(["bash", EXAMPLES / "train_one_gpu.sh"], capture_output=True, text=True)
    assert done.returncode != 0 and "expected the folder of the images" in done.stderr
