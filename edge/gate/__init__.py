"""The regression gate: a build compared with a reviewed baseline."""
