"""What the project claims, measured: `python -m benchmarks --help`. Not installed, never imported by funnel."""
