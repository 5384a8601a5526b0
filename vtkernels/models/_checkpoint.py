"""Weights from files of our own, of timm and of official codes, without ever running what a file contains."""

import argparse
import dataclasses
import importlib.util
import json
import logging
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtkernels.models._base import Model
from vtkernels.version import __version__

log = logging.getLogger("vtkernels")

# where the weights lie in files that hold more, averaged ones first: those are what is published
WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "module", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "model.pth")
# in the folder of a run, what `save_model` wrote lies one deeper
SAVED = "weights"


@dataclass
class LoadReport:
    """What became of a checkpoint.

    Attributes:
        loaded: tensors of the model that were filled.
        resized: those interpolated to another image or window size.
        missing: tensors of the model that the file does not have; they keep their initial values.
        unexpected: tensors of the file that the model does not have.
        mismatched: tensors left alone for their shape, as "name: model's, file's".
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for kind in ("resized", "missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                parts.append(f"{kind}: {', '.join(names[:8])}{more}")
        return "; ".join(parts)


def load_checkpoint(model: Model, source: str | Path) -> LoadReport:
    """Fill a model from a file, a folder, "hf-hub:owner/name" or "timm:architecture.tag", and say what did not fit."""
    state = type(model).convert_state(unwrap(read_weights(source)))
    report = LoadReport()
    own = model.state_dict()
    report.resized = list(model.resize_state(state))
    fitting = {}
    for name, value in state.items():
        if name not in own:
            report.unexpected.append(name)
        elif own[name].shape != value.shape:
            report.mismatched.append(f"{name}: {list(own[name].shape)}, {list(value.shape)}")
        else:
            fitting[name] = value
    # counters of batch normalisation are absent in old files and matter to nobody
    report.missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    report.loaded = list(fitting)
    if 2 * len(fitting) < len(own):
        raise ValueError(f"checkpoint {source}: expected the weights of a {type(model).__name__}, but only {_shortfall(report, len(own))}")
    model.load_state_dict(fitting, strict=False)
    if not report.complete:
        log.warning("checkpoint %s: %s", source, report)
    model.load_report = report
    return report


def _shortfall(report: LoadReport, wanted: int) -> str:
    return f"{len(report.loaded)} of {wanted} tensors fit ({report}); try another model name or other overrides"


def read_weights(source: str | Path) -> Any:
    """The content of a weights file, as tensors in nested dicts."""
    text = str(source)
    if text.startswith("hf-hub:"):
        return read_weights(_download(text.removeprefix("hf-hub:")))
    if text.startswith("timm:"):
        return read_weights(_download("timm/" + text.removeprefix("timm:")))
    path = Path(source).expanduser()
    if path.is_dir():
        found = next((folder / name for folder in (path, path / SAVED) for name in WEIGHT_FILES if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"checkpoint {path}: expected one of {', '.join(WEIGHT_FILES)} in this folder, found none")
        path = found
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file; expected a .pth, .safetensors or .npz file, a folder, hf-hub:owner/name or timm:name")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
        # training scripts store their command line beside the weights; a Namespace is a plain record
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {wanted[1]}" if wanted else "it is no plain dict of tensors"
        raise ValueError(
            f"checkpoint {path}: expected tensors only, but the file would run code of its own ({reason}); it was not loaded. "
            "If you trust it, load it yourself and save its state_dict as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"checkpoint {path}: the file is damaged or of another format ({error}); expected .pth, .safetensors or .npz") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"checkpoint {path}: reading it needs safetensors; pip install 'vtkernels[models]'") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def check_weights_can_be_written() -> None:
    if importlib.util.find_spec("safetensors") is None:
        raise ImportError("save_model: expected safetensors to be installed, got no such package; try pip install 'vtkernels[models]'")


def save_model(model: nn.Module, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """model.safetensors, and config.json beside it, from which `create_model(checkpoint=folder)` makes the same model again.

    `state` replaces the model's own, whose weights may lie on several processes.
    """
    check_weights_can_be_written()
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state is None else state
    # the format knows no two names for one memory
    weights = folder / "model.safetensors"
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, weights, {"format": "pt"})
    # it is written for its owner only; whoever may read the folder may read it
    weights.chmod(folder.stat().st_mode & 0o666)
    config = getattr(model, "config", None)
    if getattr(model, "variant", None) is not None and dataclasses.is_dataclass(config):
        values = dataclasses.asdict(config)
        if "num_classes" in values:
            values["num_classes"] = model.num_classes
        content = {"vtkernels": __version__, "model": model.variant, "config": values}
        if getattr(model, "statistics", None) is not None:
            content["statistics"] = model.statistics
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def saved_config(source: str | Path | None) -> dict[str, Any] | None:
    """What `save_model` wrote beside the weights; None if there is no such file."""
    if source is None or str(source).startswith(("hf-hub:", "timm:")):
        return None
    path = Path(source).expanduser()
    folders = (path, path / SAVED) if path.is_dir() else (path.parent,)
    found = next((folder / "config.json" for folder in folders if (folder / "config.json").is_file()), None)
    if found is None:
        return None
    try:
        content = json.loads(found.read_text())
    except ValueError as error:
        raise ValueError(f"checkpoint {found}: expected JSON, got something else ({error}); was it written to the end?") from error
    # other libraries have a config.json, too
    return content if isinstance(content, dict) and "vtkernels" in content else None


def revived(saved: Any, like: Any) -> Any:
    """A value out of JSON as the tuples that `like` is made of."""
    if not isinstance(saved, list):
        return saved
    likes = list(like) if isinstance(like, tuple) and like else [None]
    values = [revived(value, likes[min(index, len(likes) - 1)]) for index, value in enumerate(saved)]
    return type(like)(*values) if hasattr(like, "_fields") else tuple(values)


def _download(name: str) -> Path:
    """From the Hugging Face hub, with its own cache."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(f"checkpoint hf-hub:{name}: this needs huggingface_hub; pip install 'vtkernels[models]'") from error
    repository, _, revision = name.partition("@")
    for file in WEIGHT_FILES:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except LocalEntryNotFoundError as error:
            raise ConnectionError(
                f"checkpoint hf-hub:{name}: no connection to the hub, and the file is not in its cache; download it and give its path"
            ) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError) as error:
            raise ValueError(f"checkpoint hf-hub:{name}: the hub refused it ({error}); check the name") from error
    raise FileNotFoundError(f"checkpoint hf-hub:{name}: expected one of {', '.join(WEIGHT_FILES)} in that repository")


def unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, without the prefixes that wrappers left on its names."""
    while isinstance(content, dict):
        # loose tensors may lie beside the weights, such as the state of a random generator
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"checkpoint: expected tensors by name, or a dict with one of {', '.join(WRAPPERS)}; got {keys}")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
