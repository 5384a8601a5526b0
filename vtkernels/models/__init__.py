"""The architectures of the sources. One family a file; a file placed here is found by itself."""

from vtkernels.models._base import Config, FeatureMaps, MapInfo, Model
from vtkernels.models._checkpoint import LoadReport, load_checkpoint
from vtkernels.models._registry import Info, Variant, create_model, list_models, model_config, model_info, register

__all__ = [
    "Config",
    "FeatureMaps",
    "Info",
    "LoadReport",
    "MapInfo",
    "Model",
    "Variant",
    "create_model",
    "list_models",
    "load_checkpoint",
    "model_config",
    "model_info",
    "register",
]
