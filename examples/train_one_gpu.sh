#!/usr/bin/env bash
# Swin-T on ImageNet on one NVIDIA GPU, from nothing to an evaluated run.
#
#     examples/train_one_gpu.sh /data/imagenet [RECIPE [--FIELD VALUE ...]]
#
# The folder holds train/CLASS/IMAGE and val/CLASS/IMAGE. Batches are those of the recipe: what does not fit at once is accumulated.
# Expected by formula, and not measured on any GPU: 7 GiB of GPU memory in passes of 128 images, and 29 hours of computing if the GPU
# does 1e14 operations a second; reading the images must keep up with it. `--dry-run` prints these numbers for your choices.
set -euo pipefail

images=${1:?expected the folder of the images, as in: $0 /data/imagenet [RECIPE [--FIELD VALUE ...]]}
recipe=${2:-swin_t}
shift $(($# < 2 ? $# : 2))
folder=${FOLDER:-runs/$recipe}
fields=(--data.path "$images" --train.precision bfloat16 --train.accumulate 8 --data.workers "$(nproc)" "$@")

vtkernels train "$recipe" --dry-run "${fields[@]}"
# a file, or of a sharded run a folder
if [[ -e $folder/last.pt || -e $folder/last ]]; then
    vtkernels train --resume "$folder"
else
    vtkernels train "$recipe" --folder "$folder" "${fields[@]}"
fi
vtkernels eval "$folder" --out "$folder/evaluation" --precision bfloat16 --batch-size 256 --workers "$(nproc)"
