#!/bin/bash
# Two nodes with four GPUs each: sbatch docs/launch/slurm.sh --model ... (any flags of train)
# Another number of GPUs: GPUS=8 sbatch --gres=gpu:8 docs/launch/slurm.sh
# No GPUs, one process a node: GPUS=1 sbatch --gres=none docs/launch/slurm.sh
#SBATCH --job-name=gsm8k
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
# A minute before the end of its time the job is told, and the run is saved (torchrun leaves it 30 s for that).
#SBATCH --signal=TERM@60
set -eu
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OUTPUT=${OUTPUT:-runs/slurm} GPUS=${GPUS:-4} # a node
# Gone on with where the folder is there already: submit it again to go on.
if [ -e "$OUTPUT/run.json" ]; then what=(--resume "$OUTPUT"); else what=(--output-dir "$OUTPUT" --method lora "$@"); fi
# The folders of the model, the data and the run lie on a disk that all nodes share.
exec srun bash -c 'accelerate launch --multi_gpu --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" \
  --machine_rank "$SLURM_NODEID" --main_process_ip "$0" --main_process_port 29500 --mixed_precision no --dynamo_backend no \
  cli.py train "$@"' "$first" "${what[@]}"
