"""The network: torch only, no Lightning, no files, no data sets."""
