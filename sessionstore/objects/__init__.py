"""A table of objects: how they are encoded, written, read, and known again."""
