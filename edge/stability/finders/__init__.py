"""Finders of the places in a graph where 16 bits can fail, one file per kind."""
