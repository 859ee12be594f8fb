"""What a run leaves on disk: its folder, phases, history, request queue, and the cache of other runs."""
