"""A short list of lengths, so that a run compiles a few programs and then none."""


def bucket(length: int, quantum: int = 32) -> int:
    """Smallest of quantum · {1, 1.5, 2, 3, 4, 6, 8, …} that holds `length` (at most 50 % waste)."""
    size = quantum
    while True:
        if length <= size:
            return size
        if length <= size * 3 // 2:
            return size * 3 // 2
        size *= 2
