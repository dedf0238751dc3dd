"""What a run will take on devices that are not here, read off its compiled programs."""
