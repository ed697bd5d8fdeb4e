"""The order of the steps of a build, and what each of them reads and writes."""
