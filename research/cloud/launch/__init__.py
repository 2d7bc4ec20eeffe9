"""Starts runs and the shards of sweeps: on this machine, a Slurm cluster, or Cloud TPU slices.

The engines for other machines only write files and commands for existing programs (sbatch, sky,
xpk, gcloud); scheduling and recovery are left to those programs.
"""
