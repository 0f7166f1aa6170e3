"""What is kept of experiments, shown and controlled over HTTP; trains nothing and imports no torch.

Reads experiments through `store.SqliteReader`, and changes them only by giving commands through
`control`, as everybody else does.
"""
