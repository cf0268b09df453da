"""How fast the package is, measured against the drivers under it; see works.py."""
