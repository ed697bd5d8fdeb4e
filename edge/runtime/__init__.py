"""Running an engine: one small protocol, one file per way to run."""
