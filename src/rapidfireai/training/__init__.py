"""The training workload: a configuration becomes a TRL trainer that can be paused.

Trainers run unmodified; what is hooked is hooked on the instance, in `instrument.py`.
"""
