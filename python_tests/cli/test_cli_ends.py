"""How the command line ends: at Ctrl-C, in a closed pipe, and with its version."""

import subprocess
import sys

import pytest

import vtkernels
from vtkernels import cli


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


def test_a_reader_that_has_enough_is_no_fault():
    command = [sys.executable, "-m", "vtkernels", "list", "datasets"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert "Traceback" not in told and "BrokenPipe" not in told, told
    assert process.returncode == 141
