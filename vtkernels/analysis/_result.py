"""What an analysis gives: numbers that go into a JSON file, and pictures of them."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from vtkernels._core import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass
class Result:
    """Base of all results, which are dataclasses of numbers, strings, arrays and tensors.

    Attributes:
        name: of the analysis, and of its files.
        complete: False if it was interrupted; it then holds what was done.
    """

    name: ClassVar[str] = "result"
    complete: bool = dataclasses.field(default=True, kw_only=True)

    def draw(self) -> dict[str, "Figure"]:
        """Figures by the names of their files."""
        return {}

    def summary(self) -> str:
        """What a reader wants first, in a few lines."""
        return f"{self.name}: {'complete' if self.complete else 'interrupted'}"

    def to_json(self) -> dict[str, Any]:
        return {"analysis": self.name, **{field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}}

    def save(self, folder: str | Path) -> list[Path]:
        """Write <name>.json and the pictures, and give their paths, the JSON's first."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}.json"]
        # whoever reads meanwhile finds the old file or the new one, never a part
        partial = paths[0].with_suffix(".json.partial")
        partial.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        os.replace(partial, paths[0])
        with plots.styled():
            for stem, figure in self.draw().items():
                paths.append(folder / f"{stem}.png")
                figure.savefig(paths[-1])
        return paths


def plain(value: Any) -> Any:
    """As JSON can hold it; infinities and NaN, which it has no numbers for, become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
