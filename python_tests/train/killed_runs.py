"""A driver: runs in forked processes, killed at random moments and taken up again, against one that nobody disturbed.

python killed_runs.py FOLDER TRIES SEED
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from runs import rich_trainer, tensors

from vtkernels.train import Observer, StepRecord
from vtkernels.train.checkpoint import read

UPDATES = 8


class Diary(Observer):
    """Every loss, to the bit, in a file that outlives the process; and a byte to whoever waits for the next step."""

    def __init__(self, file: int, pipe: int):
        self.file, self.pipe = file, pipe

    def on_step(self, record: StepRecord) -> None:
        os.write(self.file, f"{record.step} {record.loss.hex()}\n".encode())
        os.write(self.pipe, b".")


def start(folder: Path) -> tuple[int, int]:
    """A process that trains in the folder, or goes on there; its id, and where its steps can be read."""
    theirs_to_read, pipe = os.pipe()
    child = os.fork()
    if child:
        os.close(pipe)
        return child, theirs_to_read
    status = 1
    try:
        torch.set_num_threads(1)
        file = os.open(folder / "diary.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        trainer = rich_trainer(folder, [Diary(file, pipe)])
        if trainer.files.holds_run:
            trainer.resume()
        trainer.fit()
        status = 0
    finally:
        os._exit(status)


def run(folder: Path, kill_after: int | None, delay: float) -> None:
    folder.mkdir()
    child, steps = start(folder)
    if kill_after is not None:
        for _ in range(kill_after):
            os.read(steps, 1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(steps)
        child, steps = start(folder)
    _, status = os.waitpid(child, 0)
    os.close(steps)
    assert status == 0, f"the run in {folder} failed"


def curve(folder: Path) -> dict[int, str]:
    """The loss of each update. An update made again after the kill must have had the same one."""
    found: dict[int, str] = {}
    for line in (folder / "diary.txt").read_text().splitlines():
        step, loss = line.split()
        assert found.setdefault(int(step), loss) == loss, f"{folder}: update {step} had loss {found[int(step)]}, and then {loss}"
    return found


def end(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, averages, optimizer, random generators."""
    return tensors(read(folder / "last.pt"))


def main(folder: Path, tries: int, seed: int) -> None:
    draw = random.Random(seed)
    # what every child would import and prepare for itself
    torch.set_num_threads(1)
    rich_trainer(None, []).fit()
    run(folder / "undisturbed", None, 0.0)
    expected, expected_end = curve(folder / "undisturbed"), end(folder / "undisturbed")
    assert sorted(expected) == list(range(1, UPDATES + 1)), expected
    resumed_inside = 0
    for number in range(tries):
        # the delay reaches from the record of an update over its checkpoint into the next update
        after, delay = draw.randint(0, UPDATES - 1), draw.random() * 0.08
        disturbed = folder / f"killed_{number}"
        run(disturbed, after, delay)
        assert curve(disturbed) == expected, (number, after, delay)
        found_end = end(disturbed)
        assert found_end.keys() == expected_end.keys()
        for name, tensor in found_end.items():
            assert torch.equal(tensor, expected_end[name]), (number, name)
        resumed_inside += after > 0
    print(f"{tries} kills, {resumed_inside} of them after the first update: the same losses and the same end, to the bit")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
