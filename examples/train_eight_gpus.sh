#!/usr/bin/env bash
# A recipe on all NVIDIA GPUs of one machine, usually eight, from nothing to an evaluated run.
#
#     examples/train_eight_gpus.sh /data/imagenet [RECIPE [--FIELD VALUE ...]]
#
# Expected of swin_t by formula, and not measured on any GPU: 7 GiB of memory on each of eight GPUs, and 3.6 hours of computing if each
# does 1e14 operations a second; reading the images and exchanging gradients come on top.
set -euo pipefail

images=${1:?expected the folder of the images, as in: $0 /data/imagenet [RECIPE [--FIELD VALUE ...]]}
recipe=${2:-swin_t}
shift $(($# < 2 ? $# : 2))
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
folder=${FOLDER:-runs/$recipe}
# threads of a process beside the workers that read its images
workers=$(($(nproc) / gpus))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((workers > 0 ? workers : 1))}
fields=(--data.path "$images" --train.precision bfloat16 --data.workers "$workers" "$@")
launch=(torchrun --standalone --nproc-per-node "$gpus" -m vtkernels)

WORLD_SIZE=$gpus vtkernels train "$recipe" --dry-run "${fields[@]}"
# a file, or of a sharded run a folder
if [[ -e $folder/last.pt || -e $folder/last ]]; then
    "${launch[@]}" train --resume "$folder"
else
    "${launch[@]}" train "$recipe" --folder "$folder" "${fields[@]}"
fi
"${launch[@]}" eval "$folder" --out "$folder/evaluation" --precision bfloat16 --batch-size 256 --workers "$workers"
