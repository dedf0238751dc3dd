"""A short list of lengths, so that a run compiles a few programs and then none."""


def bucket(length: int, quantum: int = 32, per_octave: int = 2) -> int:
    """Smallest length of a short list that holds `length`.

    The list is `quantum` and, between every doubling of it, `per_octave` equal parts: for 2 it is
    quantum · {1, 1.5, 2, 3, 4, 6, …}.  At most a share 1 / per_octave of what is given is padding.
    """
    size = quantum
    while 2 * size < length:
        size *= 2
    parts = -(-max(length - size, 0) * per_octave // size)
    return size + size * parts // per_octave
