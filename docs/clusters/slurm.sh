#!/bin/bash
# A sweep on Slurm.  From the folder that holds .venv and runs/, which all nodes must share:
#
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 docs/clusters/slurm.sh \
#       study=demo resources.device=cuda resources.gpus=1
#
# What follows the file's name goes to `lowbit-train -m`; --nodes and the like override the lines
# below.  At the time limit runs write checkpoints and the job queues itself again; to stop it for
# good, and as politely: scancel --batch --signal=TERM JOB.
#SBATCH --job-name=lowbit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=lowbit-%j.out

export PATH="$PWD/.venv/bin:$PATH"

# Who can reach a Ray cluster can run code on it as you; the token, one for this job, keeps others out.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))') || exit 2
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

# Where nodes reach each other by another network than the first one of this node, name it here.
read -r ip _ < <(hostname --all-ip-addresses)
port=$((20000 + SLURM_JOB_ID % 10000))
export ip port

# One Ray on each node, the first of them the head.  They end with this step, and it with the job.
# Workers must not see Slurm's variables: Lightning would take each for one rank of a larger run.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=0 --no-kill --cpu-bind=none \
    --output="lowbit-$SLURM_JOB_ID.ray.out" --open-mode=append bash -c '
    first=$((SLURM_PROCID == 0)) cpus=$SLURM_CPUS_ON_NODE
    unset "${!SLURM_@}"
    if ((first)); then
        exec ray start --block --num-cpus="$cpus" --head --node-ip-address="$ip" --port="$port" \
            --include-dashboard=false
    fi
    exec ray start --block --num-cpus="$cpus" --address="$ip:$port"' &

# Nodes are checked as the sweep starts, so all should be there by then; two minutes are enough.
python - "$ip:$port" "$SLURM_JOB_NUM_NODES" <<'END' || exit 1
import sys
import time

import ray

ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
deadline = time.monotonic() + 120
while (there := sum(node["Alive"] for node in ray.nodes())) < int(sys.argv[2]):
    if time.monotonic() > deadline:
        print(f"only {there} of {sys.argv[2]} nodes joined; see lowbit-*.ray.out")
        break
    time.sleep(1)
END

lowbit-train -m "$@" "hydra.launcher.address=$ip:$port" &
driver=$!
near_limit=0
trap 'near_limit=1; kill -TERM "$driver"' USR1
trap 'kill -TERM "$driver"' TERM
wait "$driver"
code=$?
while kill -0 "$driver" 2>/dev/null; do # a signal ends `wait`, not the driver
    wait "$driver"
    code=$?
done

if ((near_limit && code > 128)); then # not done, but ended by the signal
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
