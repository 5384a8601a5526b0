"""`vtkernels analyze`: look inside a trained model, and keep the picture and the numbers."""

import sys
from difflib import get_close_matches


def analyze(arguments: list[str]) -> int:
    try:
        # what comes out is drawn: to find that missing at the end would be too late
        import matplotlib  # noqa: F401
        import tyro
    except ImportError as error:
        print(f"vtkernels analyze: expected {error.name} to be installed, got no such package; try pip install 'vtkernels[train]'", file=sys.stderr)
        return 2
    from vtkernels.analysis import ANALYSES, analysis

    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, ANALYSES))
        print("usage: vtkernels analyze NAME [options]; vtkernels analyze NAME --help tells them\n")
        print("\n".join(f"  {name:{width}}  {answers}" for name, answers in ANALYSES.items()))
        return 0 if arguments else 2
    name, rest = arguments[0].replace("-", "_"), arguments[1:]
    if name not in ANALYSES:
        near = get_close_matches(name, ANALYSES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ANALYSES)}"
        print(f"vtkernels analyze: no analysis is called {arguments[0]!r}; {hint}", file=sys.stderr)
        return 2
    module = analysis(name)
    # `vtkernels analyze sharpness runs/x`: what is looked at needs no option's name
    of_one_model = "model" in module.Options.__dataclass_fields__
    if rest and not rest[0].startswith("-") and of_one_model:
        rest = ["--model", *rest]
    words = f"{ANALYSES[name][0].upper()}{ANALYSES[name][1:]}."
    if of_one_model:
        words += f" vtkernels analyze {name} MODEL [OPTIONS], with a model's name or the folder of a run."
    options = tyro.cli(module.Options, args=rest, prog=f"vtkernels analyze {name}", description=words)
    try:
        result = module.run(options)
        result.save(options.out)
    except (ValueError, TypeError, FileNotFoundError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vtkernels analyze {name}: interrupted before there was anything to keep", file=sys.stderr)
        return 130
    print(result.summary())
    print(f"kept in {options.out}")
    return 0
