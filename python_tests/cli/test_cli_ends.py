"""How the command line ends: at Ctrl-C, in a closed pipe, and with its version."""

import os
import signal
import subprocess
import sys

import pytest

import vtkernels
from vtkernels import cli
from vtkernels.cli import train as cli_train
from vtkernels.train import Observer


def test_its_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"vtkernels {vtkernels.__version__}\n"


def test_an_interruption_has_one_line(monkeypatch, capsys):
    def show(what, pattern):
        raise KeyboardInterrupt

    monkeypatch.setattr("vtkernels.cli.listing.show", show)
    assert cli.main(["list", "ops"]) == 130
    assert capsys.readouterr().err == "\nvtkernels: interrupted\n"


class Impatient(Observer):
    """Ctrl-C after the first update."""

    def on_step(self, record):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_training_says_once_how_to_go_on(monkeypatch, caplog, capfd, tmp_path):
    pytest.importorskip("tyro")
    monkeypatch.setattr(cli_train, "_observers", lambda folder, options: [Impatient()])
    words = ["train", "smoke", "--train.epochs", "1", "--schedule.warmup", "0", "--data.fraction", "0.1", "--data.batch-size", "24"]
    assert cli.main([*words, "--folder", str(tmp_path)]) == 130
    told = caplog.text + capfd.readouterr().err
    assert told.count(f"vtkernels train --resume {tmp_path}") == 1, told


def test_a_reader_that_has_enough_is_no_fault():
    command = [sys.executable, "-m", "vtkernels", "list", "datasets"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert "Traceback" not in told and "BrokenPipe" not in told, told
    assert process.returncode == 141
