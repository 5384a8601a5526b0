"""Tables for a terminal: by rich where it is installed, plain otherwise."""

from collections.abc import Sequence

# all others are shares, and shown in percent
_NUMBERS = ("nll", "nll_tempered", "brier", "temperature")
_COUNTS = ("count", "negatives", "without_answer")


def shown(name: str, value: float | None) -> str:
    """A measure as people write it."""
    if value is None:
        return "-"
    if name in _COUNTS:
        return str(int(value))
    if name.endswith("_percent"):
        return f"{value:.2f}"
    return f"{value:.4f}" if name in _NUMBERS else f"{100 * value:.2f} %"


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, plain: bool = False) -> str:
    """Lines of text; the first column is left-aligned, numbers right."""
    rich = None if plain else _rich(title, header, rows)
    return rich if rich is not None else _plain(title, header, rows)


def _plain(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]).rstrip()

    return "\n".join([title, line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def _rich(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str | None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return None
    drawn = Table(title=title, title_justify="left")
    for column, name in enumerate(header):
        drawn.add_column(name, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    console = Console(width=max(100, 4 + sum(3 + max(len(row[column]) for row in [header, *rows]) for column in range(len(header)))), color_system=None)
    with console.capture() as captured:
        console.print(drawn, markup=False)
    return captured.get().rstrip()
