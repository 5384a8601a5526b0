"""The published policies of AutoAugment: sub-policies of two operations, each with its probability and its level.

Read `Inv 0.1/7 + Con 0.2/6` as: invert with probability 0.1 at level 7, then contrast with probability 0.2 at level 6.
"""

NAMES = {
    "Inv": "invert",
    "Con": "contrast",
    "Rot": "rotate",
    "TrX": "translate_x",
    "TrY": "translate_y",
    "Sha": "sharpness",
    "ShX": "shear_x",
    "ShY": "shear_y",
    "AC": "autocontrast",
    "Eq": "equalize",
    "Sol": "solarize",
    "SolA": "solarize_add",
    "Col": "color",
    "Pos": "posterize",
    "PosO": "posterize_original",
    "Bri": "brightness",
    "Cut": "cutout",
}

# operation, probability, level
Part = tuple[str, float, int]
SubPolicy = tuple[Part, ...]

_TEXTS = {
    # the paper's, for ImageNet
    "imagenet": """
        PosO 0.4/8 + Rot 0.6/9; Sol 0.6/5 + AC 0.6/5; Eq 0.8/8 + Eq 0.6/3; PosO 0.6/7 + PosO 0.6/6; Eq 0.4/7 + Sol 0.2/4; Eq 0.4/4 + Rot 0.8/8;
        Sol 0.6/3 + Eq 0.6/7; PosO 0.8/5 + Eq 1/2; Rot 0.2/3 + Sol 0.6/8; Eq 0.6/8 + PosO 0.4/6; Rot 0.8/8 + Col 0.4/0; Rot 0.4/9 + Eq 0.6/2;
        Eq 0/7 + Eq 0.8/8; Inv 0.6/4 + Eq 1/8; Col 0.6/4 + Con 1/8; Rot 0.8/8 + Col 1/2; Col 0.8/8 + Sol 0.8/7; Sha 0.4/7 + Inv 0.6/8; ShX 0.6/5 + Eq 1/9;
        Col 0.4/0 + Eq 0.6/3; Eq 0.4/7 + Sol 0.2/4; Sol 0.6/5 + AC 0.6/5; Inv 0.6/4 + Eq 1/8; Col 0.6/4 + Con 1/8; Eq 0.8/8 + Eq 0.6/3
    """,
    # of the EfficientNets
    "imagenet_v0": """
        Eq 0.8/1 + ShY 0.8/4; Col 0.4/9 + Eq 0.6/3; Col 0.4/1 + Rot 0.6/8; Sol 0.8/3 + Eq 0.4/7; Sol 0.4/2 + Sol 0.6/2; Col 0.2/0 + Eq 0.8/8;
        Eq 0.4/8 + SolA 0.8/3; ShX 0.2/9 + Rot 0.6/8; Col 0.6/1 + Eq 1/2; Inv 0.4/9 + Rot 0.6/0; Eq 1/9 + ShY 0.6/3; Col 0.4/7 + Eq 0.6/0;
        Pos 0.4/6 + AC 0.4/7; Sol 0.6/8 + Col 0.6/9; Sol 0.2/4 + Rot 0.8/9; Rot 1/7 + TrY 0.8/9; ShX 0/0 + Sol 0.8/4; ShY 0.8/0 + Col 0.6/4;
        Col 1/0 + Rot 0.6/2; Eq 0.8/4 + Eq 0/8; Eq 1/4 + AC 0.6/2; ShY 0.4/7 + SolA 0.6/7; Pos 0.8/2 + Sol 0.6/10; Sol 0.6/8 + Eq 0.6/1; Col 0.8/6 + Rot 0.4/5
    """,
    # the paper's, for CIFAR
    "cifar": """
        Inv 0.1/7 + Con 0.2/6; Rot 0.7/2 + TrX 0.3/9; Sha 0.8/1 + Sha 0.9/3; ShY 0.5/8 + TrY 0.7/9; AC 0.5/8 + Eq 0.9/2; ShY 0.2/7 + Pos 0.3/7;
        Col 0.4/3 + Bri 0.6/7; Sha 0.3/9 + Bri 0.7/9; Eq 0.6/5 + Eq 0.5/1; Con 0.6/7 + Sha 0.6/5; Col 0.7/7 + TrX 0.5/8; Eq 0.3/7 + AC 0.4/8;
        TrY 0.4/3 + Sha 0.2/6; Bri 0.9/6 + Col 0.2/8; Sol 0.5/2 + Inv 0/3; Eq 0.2/0 + AC 0.6/0; Eq 0.2/8 + Eq 0.6/4; Col 0.9/9 + Eq 0.6/6;
        AC 0.8/4 + Sol 0.2/8; Bri 0.1/3 + Col 0.7/0; Sol 0.4/5 + AC 0.9/3; TrY 0.9/9 + TrY 0.7/9; AC 0.9/2 + Sol 0.8/3; Eq 0.8/8 + Inv 0.1/3;
        TrY 0.7/9 + AC 0.9/1
    """,
    # all the search found for CIFAR-10
    "cifar_full": """
        Inv 0.1/7 + Con 0.2/6; Rot 0.7/2 + TrX 0.3/9; Sha 0.8/1 + Sha 0.9/3; ShY 0.5/8 + TrY 0.7/9; AC 0.5/8 + Eq 0.9/2; Sol 0.4/5 + AC 0.9/3;
        TrY 0.9/9 + TrY 0.7/9; AC 0.9/2 + Sol 0.8/3; Eq 0.8/8 + Inv 0.1/3; TrY 0.7/9 + AC 0.9/1; Sol 0.4/5 + AC 0/2; TrY 0.7/9 + TrY 0.7/9;
        AC 0.9/0 + Sol 0.4/3; Eq 0.7/5 + Inv 0.1/3; TrY 0.7/9 + TrY 0.7/9; Sol 0.4/5 + AC 0.9/1; TrY 0.8/9 + TrY 0.9/9; AC 0.8/0 + TrY 0.7/9;
        TrY 0.2/7 + Col 0.9/6; Eq 0.7/6 + Col 0.4/9; ShY 0.2/7 + Pos 0.3/7; Col 0.4/3 + Bri 0.6/7; Sha 0.3/9 + Bri 0.7/9; Eq 0.6/5 + Eq 0.5/1;
        Con 0.6/7 + Sha 0.6/5; Bri 0.3/7 + AC 0.5/8; AC 0.9/4 + AC 0.5/6; Sol 0.3/5 + Eq 0.6/5; TrY 0.2/4 + Sha 0.3/3; Bri 0/8 + Col 0.8/8;
        Sol 0.2/6 + Col 0.8/6; Sol 0.2/6 + AC 0.8/1; Sol 0.4/1 + Eq 0.6/5; Bri 0/0 + Sol 0.5/2; AC 0.9/5 + Bri 0.5/3; Con 0.7/5 + Bri 0/2;
        Sol 0.2/8 + Sol 0.1/5; Con 0.5/1 + TrY 0.2/9; AC 0.6/5 + TrY 0/9; AC 0.9/4 + Eq 0.8/4; Bri 0/7 + Eq 0.4/7; Sol 0.2/5 + Eq 0.7/5; Eq 0.6/8 + Col 0.6/2;
        Col 0.3/7 + Col 0.2/4; AC 0.5/2 + Sol 0.7/2; AC 0.2/0 + Eq 0.1/0; ShY 0.6/5 + Eq 0.6/5; Bri 0.9/3 + AC 0.4/1; Eq 0.8/8 + Eq 0.7/7;
        Eq 0.7/7 + Sol 0.5/0; Eq 0.8/4 + TrY 0.8/9; TrY 0.8/9 + TrY 0.6/9; TrY 0.9/0 + TrY 0.5/9; AC 0.5/3 + Sol 0.3/4; Sol 0.5/3 + Eq 0.4/4;
        Col 0.7/7 + TrX 0.5/8; Eq 0.3/7 + AC 0.4/8; TrY 0.4/3 + Sha 0.2/6; Bri 0.9/6 + Col 0.2/8; Sol 0.5/2 + Inv 0/3; AC 0.1/5 + Bri 0/0;
        Cut 0.2/4 + Eq 0.1/1; Eq 0.7/7 + AC 0.6/4; Col 0.1/8 + ShY 0.2/3; ShY 0.4/2 + Rot 0.7/0; ShY 0.1/3 + AC 0.9/5; TrY 0.3/6 + Cut 0.3/3;
        Eq 0.5/0 + Sol 0.6/6; AC 0.3/5 + Rot 0.2/7; Eq 0.8/2 + Inv 0.4/0; Eq 0.9/5 + Col 0.7/0; Eq 0.1/1 + ShY 0.1/3; AC 0.7/3 + Eq 0.7/0;
        Bri 0.5/1 + Con 0.1/7; Con 0.1/4 + Sol 0.6/5; Sol 0.2/3 + ShX 0/0; TrX 0.3/0 + TrX 0.6/0; Eq 0.5/9 + TrY 0.6/7; ShX 0.1/0 + Sha 0.5/1;
        Eq 0.8/6 + Inv 0.3/6; AC 0.3/9 + Cut 0.5/3; ShX 0.4/4 + AC 0.9/2; ShX 0/3 + Pos 0/3; Sol 0.4/3 + Col 0.2/4; Eq 0.1/4 + Eq 0.7/6; Eq 0.3/8 + AC 0.4/3;
        Sol 0.6/4 + AC 0.7/6; AC 0.2/9 + Bri 0.4/8; Eq 0.1/0 + Eq 0/6; Eq 0.8/4 + Eq 0/4; Eq 0.5/5 + AC 0.1/2; Sol 0.5/5 + AC 0.9/5; AC 0.6/1 + AC 0.7/8;
        Eq 0.2/0 + AC 0.1/2; Eq 0.6/9 + Eq 0.4/4
    """,
    # the paper's, for SVHN
    "svhn": """
        ShX 0.9/4 + Inv 0.2/3; ShY 0.9/8 + Inv 0.7/5; Eq 0.6/5 + Sol 0.6/6; Inv 0.9/3 + Eq 0.6/3; Eq 0.6/1 + Rot 0.9/3; ShX 0.9/4 + AC 0.8/3;
        ShY 0.9/8 + Inv 0.4/5; ShY 0.9/5 + Sol 0.2/6; Inv 0.9/6 + AC 0.8/1; Eq 0.6/3 + Rot 0.9/3; ShX 0.9/4 + Sol 0.3/3; ShY 0.8/8 + Inv 0.7/4;
        Eq 0.9/5 + TrY 0.6/6; Inv 0.9/4 + Eq 0.6/7; Con 0.3/3 + Rot 0.8/4; Inv 0.8/5 + TrY 0/2; ShY 0.7/6 + Sol 0.4/8; Inv 0.6/4 + Rot 0.8/4;
        ShY 0.3/7 + TrX 0.9/3; ShX 0.1/6 + Inv 0.6/5; Sol 0.7/2 + TrY 0.6/7; ShY 0.8/4 + Inv 0.8/8; ShX 0.7/9 + TrY 0.8/3; ShY 0.8/5 + AC 0.7/3;
        ShX 0.7/2 + Inv 0.1/5
    """,
}


def _parse(text: str) -> tuple[SubPolicy, ...]:
    def part(words: str) -> Part:
        name, numbers = words.split()
        probability, level = numbers.split("/")
        return NAMES[name], float(probability), int(level)

    return tuple(tuple(part(words) for words in pair.split("+")) for pair in text.split(";"))


POLICIES = {name: _parse(text) for name, text in _TEXTS.items()}
