"""The mini-world: procedural subjects and an exact judge. One more data source and one more judge, nothing else."""
