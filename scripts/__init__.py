"""What keeps the project: its checks, its pictures, its benchmarks."""
