from vtkernels.ops.jsd.op import augmix_loss, jsd_consistency

__all__ = ["augmix_loss", "jsd_consistency"]
