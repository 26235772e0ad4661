"""What only this repository's developers run: `python -m benchmarks.speed`, `python -m benchmarks.study`."""
