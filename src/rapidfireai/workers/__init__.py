"""What it takes to run many trainings in one process: fibers, per-run globals, shared weights.

It knows nothing of trainers' arguments or datasets; those are the workload's.
"""
