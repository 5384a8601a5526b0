"""Writes the README's measured figures from the committed results: `python benchmarks/readme_figures.py`.

What stands between the two marks of README.md is this script's, and a test fails when it disagrees with the files. A figure that no
file holds is not told.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "amd-epyc"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
# rows of the table of window attention: what a line is called, and its file
WINDOW_ATTENTION = {
    "float32, 2 threads": "attn_issue_float32_b8_2t",
    "float32, 1 thread": "attn_issue_float32_b8_1t",
    "float32, AVX2 kernels, 2 threads": "attn_issue_float32_b8_2t_avx2",
    "bfloat16, 2 threads": "attn_issue_bfloat16_b8_2t",
}
KERNELS_ALONE = {"the kernel alone, float32": "attn_issue_float32_b8_2t_raw", "the kernel alone, bfloat16": "attn_issue_bfloat16_b8_2t_raw"}
MODELS = {
    "Swin-T, float32": "train_step_float32_b8_2t_swin_tiny_patch4_window7_224",
    "Swin-T, bfloat16 autocast": "train_step_bfloat16_b8_2t_swin_tiny_patch4_window7_224",
    "CaiT-XXS24, float32": "train_step_float32_b8_2t_cait_xxs24_224",
}


def main() -> int:
    README.write_text(replaced(README.read_text(), figures()))
    return 0


def replaced(text: str, between: str) -> str:
    """The text with another part between the marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md: expected {BEGIN} and, after it, {END}; write both where the figures belong")
    return f"{before}{begin}\n{between}\n{end}{after}"


def figures() -> str:
    return "\n\n".join([window_attention(), other_ops(), whole_models(), augmentation()])


def window_attention() -> str:
    results = {line: load(file) for line, file in (WINDOW_ATTENTION | KERNELS_ALONE).items()}
    first = results["float32, 2 threads"]
    lines = [window_attention_line(name, result, " *" if commit(result) != commit(first) else "") for name, result in results.items()]
    forward, training = first["summary"]["forward"], first["summary"]["training"]
    ceilings = [summary["over_fastest"]["mean"] / summary["share_of_peak"]["mean"] for summary in (forward, training)]
    stage = next(row for row in first["rows"] if row.get("saved_bytes"))
    kept = stage["saved_bytes"]["vtkernels"]
    environment = first["environment"]
    core = first["peaks"]["GFLOPs"]["float32"] / environment["threads"]
    torch = environment["versions"]["torch"].partition("+")[0]
    return f"""{environment["cpus"]} cores of an {environment["cpu"]} ({core:.0f} GFLOP/s of float32 multiply-adds a core), torch {torch}, Python and
autograd included, {forward["over_eager"]["shapes"]} shapes: Swin-T's stages at batch 8 with window 7, window 8 at 64 x 64, window 12 at
96 x 96 and 24 x 24, shifted and not. Geometric mean over the shapes, worst shape in brackets; every number and plot is in
[benchmarks/results/amd-epyc](benchmarks/results/amd-epyc).

{table(("window attention", "over eager", "over the fastest peer of each shape", "share of the arithmetic peak"), lines)}

Lines marked * were measured at another commit of the kernels. bfloat16's peak is that of its dot products.
Arithmetic is the limit: at the processor's full float32 peak the ratios over the fastest peer would be {ceilings[0]:.1f}x and {ceilings[1]:.1f}x.
For its backward the op keeps {megabytes(kept) if kept else "nothing but its inputs"} at windows of up to 64 tokens; the eager path keeps
{megabytes(stage["saved_bytes"]["eager"])} at Swin-T's first stage."""


def window_attention_line(name: str, result: dict, mark: str) -> list[str]:
    phases = list(result["summary"].values())
    if name in KERNELS_ALONE:
        return [f"{name}, forward; backward{mark}", "", "", "; ".join(percent(phase["share_of_peak"]) for phase in phases)]
    shown = {"over_eager": times, "over_fastest": times, "share_of_peak": percent}
    return [f"{name}, forward; forward + backward{mark}", *("; ".join(show(phase[key]) for phase in phases) for key, show in shown.items())]


def other_ops() -> str:
    classes, narrow = load("class_attn_float32_b32_2t_197"), load("class_attn_bfloat16_b32_2t_197")
    heads, jsd = load("talking_heads_float32_2t"), load("jsd_k10-1000_float32_2t")
    drloc, sam = load("drloc_float32_2t_b64_tuned"), load("sam_vit_s-swin_t_sgd_float32_2t")
    many, few = ([row for row in jsd["rows"] if row["classes"] == number] for number in (1000, 10))
    steps = [row["ours"] for row in sam["rows"]]
    pace = [100 * row["share_of_control"] for row in steps]

    def class_attention(result: dict) -> list[str]:
        return [f"{fastest(rows)}; {span(row['folded']['ratio'] for row in rows)}" for rows in phases_of(result)]

    def published(rows: list[dict], peer: str = "fastest") -> str:
        return f"{span(row['over_published'] for row in rows)}; {fastest(rows, peer)}"

    folding = "the same folding in PyTorch"
    lines = [
        ["class attention, float32", f"timm, SDPA, compiled SDPA; {folding}", *class_attention(classes), "CaiT XXS24 to M36, 197 tokens, batch 32"],
        ["class attention, bfloat16", f"timm's module; {folding}", *class_attention(narrow), "the same"],
        ["talking-heads attention", "the faster of eager and compiled", *(fastest(rows) for rows in phases_of(heads)), "CaiT-XXS24, S24, batch 8"],
        ["AugMix loss, 1000 classes", "the published code; the fastest compiled", "", published(many), "batch 128 and 1024"],
        ["AugMix loss, 10 classes", "the same", "", published(few), "the same"],
        [
            "DRLOC pairs",
            "the published algorithm; the best eager gather",
            *(published(rows, "fastest_eager") for rows in phases_of(drloc)),
            "7x7x768 and 14x14x384, batch 64, tuned allocator",
        ],
        [
            "SAM + SGD, perturb to update",
            "the published loop; `torch.compile` of foreach",
            "",
            f"{published(steps)}; {min(pace):.0f} to {max(pace):.0f} % of the memory's own pace",
            "ViT-S, Swin-T",
        ],
    ]
    threads = classes["environment"]["threads"]
    rounds = [result["plan"]["rounds"] for result in (classes, narrow, heads, jsd, drloc, sam)]
    return f"""The other ops on the same cores, {threads} threads, float32 unless said otherwise, medians of {min(rounds)} to {max(rounds)} undisturbed
rounds, Python and autograd included. Worst shape to best; of two peers the first stands before the semicolon, the second behind it:

{table(("op", "compared with", "forward", "forward + backward", "shapes"), lines)}"""


def whole_models() -> str:
    results = {name: load(file) for name, file in MODELS.items()}
    lines = []
    for name, result in results.items():
        (inference,), (training,) = phases_of(result, "inference")
        peak = training["peak_bytes"]
        sides = (("vtkernels", "timm"), ("accelerated", "timm"), ("vtkernels", "timm_compiled"))
        cells = (both([row["times_faster"][side].get(peer) for row in (training, inference)]) for side, peer in sides)
        lines.append([name, *cells, f"{megabytes(peak['timm'])}, {megabytes(peak['vtkernels'])}"])
    rounds = [result["plan"]["rounds"] for result in results.values()]
    (batch,) = {row["batch"] for result in results.values() for row in result["rows"]}
    return f"""Whole models, batch {batch}, 2 threads (a training step with AdamW; inference), {min(rounds)} to {max(rounds)} undisturbed rounds,
[benchmarks/train_step.py](benchmarks/train_step.py):

{table(("model", "ours over timm's", "timm's accelerated over timm's", "ours over timm's compiled", "memory of a step, timm's and ours"), lines)}"""


def augmentation() -> str:
    rows = {(row["task"], row["side"]): row["over"] for row in load("augmix")["rows"]}
    (large, small), (policy, small_policy) = ([rows[task, side] for side in (224, 32)] for task in ("augmix", "randaugment"))
    return f"""Images on one core ([benchmarks/augmix.py](benchmarks/augmix.py)): AugMix is {large["published"]:.0f} times as fast as the published code
at 224 x 224 and {small["published"]:.0f} times at 32 x 32, {large["torchvision"]:.0f} and
{small["torchvision"]:.0f} times as fast as torchvision's; RandAugment {policy["timm"]:.1f} and {small_policy["timm"]:.1f} times as fast as timm's."""


def load(file: str) -> dict:
    return json.loads((RESULTS / f"{file}.json").read_text())


def commit(result: dict) -> str:
    """Of the sources that were measured; a plus behind it says that some file had been changed since."""
    return result["environment"]["commit"].rstrip("+")


def phases_of(result: dict, first: str = "forward") -> list[list[dict]]:
    return [[row for row in result["rows"] if row["phase"] == phase] for phase in (first, "training")]


def fastest(rows: list[dict], peer: str = "fastest") -> str:
    return span(row[peer]["ratio"] for row in rows)


def both(ratios: Sequence[float | None]) -> str:
    return "not measured" if None in ratios else "; ".join(f"{ratio:.2f}x" for ratio in ratios)


def times(summary: dict) -> str:
    return f"{summary['mean']:.2f}x ({summary['min']:.2f}x)"


def percent(summary: dict) -> str:
    return f"{100 * summary['mean']:.0f} % ({100 * summary['min']:.0f} %)"


def span(ratios: Iterable[float]) -> str:
    """From the smallest to the largest, with as many digits as say something."""
    values = list(ratios)
    low, high = (f"{value:.0f}" if value >= 15 else f"{value:.1f}" for value in (min(values), max(values)))
    return f"{low}x" if low == high else f"{low} to {high}x"


def megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"


def table(header: Sequence[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


if __name__ == "__main__":
    sys.exit(main())
