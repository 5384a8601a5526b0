"""timm's Swin on our ops, trained with SAM: one line more for each. Learns to read 8 x 8 digits.

python examples/accelerate_timm.py
"""

import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import vtkernels as vt


def main(epochs: int = 3, accelerated: bool = True) -> float:
    data = load_digits()
    images = F.interpolate(torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, scale_factor=2)
    labels = torch.tensor(data.target)
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "window_size": 2, "embed_dim": 48, "depths": (2, 1), "num_heads": (6, 12), "drop_path_rate": 0.0}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, in_chans=1, **sizes)
    if accelerated:
        print(vt.acceleration_report(vt.accelerate(model)))
    sam = vt.optim.SAM(model.parameters(), torch.optim.AdamW, rho=0.1, lr=2e-3, weight_decay=0.05)
    for epoch in range(epochs):
        for chosen in torch.randperm(1437).split(48):
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            with sam.perturbed():
                F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            sam.step()
            sam.zero_grad()
        with torch.no_grad():
            accuracy = (model.eval()(images[1437:]).argmax(1) == labels[1437:]).float().mean().item()
        model.train()
        print(f"epoch {epoch}: test accuracy {accuracy:.2%}")
    return accuracy


if __name__ == "__main__":
    main()
