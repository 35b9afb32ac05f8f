"""What a learned method must beat, on the very same episodes."""
