"""`vtkernels eval`: the weights of a run, or of a checkpoint, on one or many test sets."""

import sys


def evaluate(arguments: list[str]) -> int:
    try:
        # what comes out is drawn: to find that missing at the end would be too late
        import matplotlib  # noqa: F401
        import tyro
    except ImportError as error:
        print(f"vtkernels eval: expected {error.name} to be installed, got no such package; try pip install 'vtkernels[train]'", file=sys.stderr)
        return 2
    from vtkernels.evaluation.command import EvaluationOptions, run

    # `vtkernels eval runs/x`: what is evaluated needs no option's name
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    words = "Which model, on which images. vtkernels eval MODEL [OPTIONS], with a model's name or the folder of a run."
    options = tyro.cli(EvaluationOptions, args=arguments, prog="vtkernels eval", description=words)
    try:
        return run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
