"""The steps of a pipeline, by the names that its file uses."""
