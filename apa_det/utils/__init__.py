"""JSON files, drawing, plotting style, and imports of user modules."""
