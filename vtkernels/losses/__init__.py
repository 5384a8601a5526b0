"""Losses of classes, features, teachers and numbers: each a function and a module, computed in float32 at least."""

from vtkernels.losses.asymmetric import AsymmetricMultiLabelLoss, AsymmetricSingleLabelLoss, asymmetric_multi_label_loss, asymmetric_single_label_loss
from vtkernels.losses.augmix import AugMixLoss, JsdCrossEntropy
from vtkernels.losses.binary import BinaryCrossEntropy, CosubLoss, binary_cross_entropy, cosub_loss
from vtkernels.losses.boxes import GiouLoss, giou_loss
from vtkernels.losses.categorical import (
    BalancedCrossEntropy,
    CrossEntropy,
    SoftTargetCrossEntropy,
    balanced_cross_entropy,
    cross_entropy,
    effective_number_weights,
    inverse_frequency_weights,
    soft_target_cross_entropy,
)
from vtkernels.losses.center import CenterLoss, IslandLoss, center_loss, island_loss, island_pairs
from vtkernels.losses.distillation import (
    DeitDistillationLoss,
    HardDistillationLoss,
    NoisyStudentLoss,
    SoftDistillationLoss,
    distillation_divergence,
    hard_distillation_loss,
    noisy_student_loss,
    soft_distillation_loss,
    tempered,
)
from vtkernels.losses.drloc import DrlocLoss, drloc_weight
from vtkernels.losses.fixmatch import FixMatchLoss, fixmatch_loss
from vtkernels.losses.focal import FocalLoss, SigmoidFocalLoss, focal_loss, focal_prior_bias, sigmoid_focal_loss
from vtkernels.losses.gccs import GccsLoss, gccs_loss
from vtkernels.losses.label_smoothing import LabelSmoothingCrossEntropy, label_smoothing_convention, label_smoothing_cross_entropy
from vtkernels.losses.region_biased import RegionAttention, RegionBiasedLoss, region_biased_loss
from vtkernels.losses.regression import L1Loss, LaplaceLoss, l1_loss, laplace_loss
from vtkernels.losses.sparse_center import CenterAttention, SparseCenterLoss, sparse_center_loss

__all__ = [
    "AsymmetricMultiLabelLoss",
    "AsymmetricSingleLabelLoss",
    "AugMixLoss",
    "BalancedCrossEntropy",
    "BinaryCrossEntropy",
    "CenterAttention",
    "CenterLoss",
    "CosubLoss",
    "CrossEntropy",
    "DeitDistillationLoss",
    "DrlocLoss",
    "FixMatchLoss",
    "FocalLoss",
    "GccsLoss",
    "GiouLoss",
    "HardDistillationLoss",
    "IslandLoss",
    "JsdCrossEntropy",
    "L1Loss",
    "LabelSmoothingCrossEntropy",
    "LaplaceLoss",
    "NoisyStudentLoss",
    "RegionAttention",
    "RegionBiasedLoss",
    "SigmoidFocalLoss",
    "SoftDistillationLoss",
    "SoftTargetCrossEntropy",
    "SparseCenterLoss",
    "asymmetric_multi_label_loss",
    "asymmetric_single_label_loss",
    "balanced_cross_entropy",
    "binary_cross_entropy",
    "center_loss",
    "cosub_loss",
    "cross_entropy",
    "distillation_divergence",
    "drloc_weight",
    "effective_number_weights",
    "fixmatch_loss",
    "focal_loss",
    "focal_prior_bias",
    "gccs_loss",
    "giou_loss",
    "hard_distillation_loss",
    "inverse_frequency_weights",
    "island_loss",
    "island_pairs",
    "l1_loss",
    "label_smoothing_convention",
    "label_smoothing_cross_entropy",
    "laplace_loss",
    "noisy_student_loss",
    "region_biased_loss",
    "sigmoid_focal_loss",
    "soft_distillation_loss",
    "soft_target_cross_entropy",
    "sparse_center_loss",
    "tempered",
]
