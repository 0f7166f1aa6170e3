"""The verbs of the command `rapidfireai` that look at experiments and control them.

Each module adds its verbs to the parser, and imports what they need when they are called.
"""
