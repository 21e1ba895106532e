"""Read configs and set up their jobs."""
