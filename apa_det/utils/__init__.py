"""JSON files, plotting style, and imports of user modules."""
