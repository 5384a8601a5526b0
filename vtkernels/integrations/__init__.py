"""Other libraries' models on our ops: what is replaced where, and why something was left alone."""

from vtkernels.integrations.accelerate import AccelerationReport, accelerate, acceleration_report, restore

__all__ = ["AccelerationReport", "accelerate", "acceleration_report", "restore"]
