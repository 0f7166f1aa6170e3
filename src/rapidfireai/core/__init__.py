"""The engine's pure part: run states, events, chunks, the scheduler and the step that joins them.

Imports the standard library only; it knows neither torch nor a database nor the time of day.
"""
