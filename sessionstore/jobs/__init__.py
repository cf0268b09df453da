"""What a session is made of: its jobs' rows, claims, transitions and history."""
