"""The demo: four configurations of a small model, trained at once, ranked and asked questions.

`rapidfireai demo` runs it; `demo.run` shows how the package is used.
"""
