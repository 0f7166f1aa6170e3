"""What the package costs and gains, measured; see docs/benchmarks.md. Not part of the package."""
