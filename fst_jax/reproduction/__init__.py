"""The paper's experiments: which runs they are, making them, and keeping what they found."""
