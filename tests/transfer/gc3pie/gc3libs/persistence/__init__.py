"""Where the classes of IDs are."""
