#!/bin/bash
# Trains under Slurm on any number of nodes; arguments are those of `python -m scone_pl fit`:
#   sbatch -N 2 deploy/slurm.sh --config experiments/stage2.yaml --model.init_args.sharding.replicas 2
# Five minutes before the time limit, and when it is preempted, every rank finishes its step and saves; the job is then
# requeued and resumes. A failed job ends, with its status.
#SBATCH --job-name=scone
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=scone-%j.log
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:-.}" || exit
if [ -f .venv/bin/activate ]; then
    # shellcheck disable=SC1091
    . .venv/bin/activate
fi
# Lightning takes ranks and the address of the first node from Slurm; a port of the job's own keeps two jobs apart.
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Signals to the job reach its steps; this shell outlives them to requeue it.
trap '' USR1 TERM
(
    trap - USR1 TERM
    # Behind the arguments, because a recipe overrides what stands before it.
    exec srun --kill-on-bad-exit=1 python -m scone_pl fit "$@" \
        --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
)
status=$?
# 128 + SIGUSR1, 128 + SIGTERM: stopped by a signal, saved. Other signals (KILL: out of memory) are failures.
if [ "$status" -eq 138 ] || [ "$status" -eq 143 ]; then
    echo "saved after a signal; requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
