"""The architectures of the sources. One family a file; a file placed here is found by itself."""

from vtkernels.models._base import Config, FeatureMaps, MapInfo, Model
from vtkernels.models._checkpoint import LoadReport, load_checkpoint
from vtkernels.models._detector import Cells, Detector, boxes_of
from vtkernels.models._registry import Info, Variant, create_model, list_models, model_config, model_info, register
from vtkernels.models._segmenter import Segmenter

__all__ = [
    "Cells",
    "Config",
    "Detector",
    "FeatureMaps",
    "Info",
    "LoadReport",
    "MapInfo",
    "Model",
    "Segmenter",
    "Variant",
    "boxes_of",
    "create_model",
    "list_models",
    "load_checkpoint",
    "model_config",
    "model_info",
    "register",
]
