"""Looking inside trained models. One analysis a file: `Options`, what it can be told, and `run(options)`, which gives a result with `.save(folder)`."""

import importlib
from types import ModuleType

from vtkernels._core.check import fail

# name, which is also the module's -> what it answers
ANALYSES = {
    "active_learning": "which images to label next: accuracy against the number of labels, for several ways of choosing them",
    "attention": "where the model looks: class-token maps, rollout, and how far attention reaches",
    "features": "how classes lie in feature space, drawn by t-SNE",
    "landscape": "the loss along random directions, on a plane, and between two models",
    "ntk": "condition number of the neural tangent kernel: how evenly gradient descent learns",
    "search": "evolutionary architecture search and compound scaling at toy scale",
    "sharpness": "curvature of the loss: largest Hessian eigenvalues, spectrum, trace, and the loss in a ball around the weights",
    "sparsity": "share of active neurons, and accuracy after pruning",
    "throughput": "images a second, memory and multiplications of models",
}


def analysis(name: str) -> ModuleType:
    """The module of an analysis, with `Options` and `run`; loaded when it is asked for."""
    if name not in ANALYSES:
        fail("vtkernels.analysis", "name", f"be one of {', '.join(ANALYSES)}", repr(name))
    return importlib.import_module(f"vtkernels.analysis.{name}")


__all__ = ["ANALYSES", "analysis"]
