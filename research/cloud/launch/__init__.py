"""Starts runs and the shards of sweeps: on this machine, a Slurm cluster, or Cloud TPU slices.

The engines of other machines only write files and commands for programs that exist (sbatch, sky,
xpk, gcloud); nothing here schedules or recovers anything itself.
"""
