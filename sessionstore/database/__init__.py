"""A database as the store uses it: connections, transactions, and what differs."""
