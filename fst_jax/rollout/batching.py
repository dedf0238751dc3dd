"""Continuous batching: which sample sits in which slot, and which context is computed when.

The host side of the engine.  Samples wait by context; between two jitted chunks those that ended
leave their slots and others take them.  A row that no sample uses any more keeps its context: it
is the prefix cache.  A new context begins as a copy of the row that shares the longest beginning
with it, and only the rest is computed; where several newcomers share a beginning that no row has,
one of them goes first.  New weights make every row useless as a source.

All decisions follow from the order of calls alone, so every host of a multi-host run makes the
same ones.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fst_jax.models.decoder import Decoder
from fst_jax.parallel.sharding import SEQUENCES, whole_shards
from fst_jax.rollout.sample import Sample
from fst_jax.rollout.sampler import Choice
from fst_jax.rollout.slots import Chunk, Grid, Piece, Plan, programs
from fst_jax.shapes import bucket

NO_TOKEN = -1  # pads tables of token ids
CHUNK = 32  # most tokens of a slot between two looks at who waits
_REFILL = 8  # a chunk ends early when a share 1/8 of the slots could be filled
_AHEAD = 256  # columns that a slot is given beyond what it has generated, at most
_IDLE_FITS = 16  # times that idle rows were longer than needed, before they are cut
_WORTH = 16  # tokens that a shared beginning must have for one newcomer to wait for another
_SHORT, _LONG = 64, 512  # tokens of a row in one call of prefill; two, since each is a program
_MOST = 4096  # tokens of all rows together in a long one, which bounds the memory of the scores
_WIDTHS = (1, 2, 4)  # slots of a row
# Rows of a call of prefill, where the grid has more; to write one, XLA's CPU backend copies all.
_ROWS = (2, 8, 64, 512)


def piece_width(rows: int, tokens: int, room: int) -> int:
    """Tokens of a row in one call of prefill, where the longest has `tokens` left to compute."""
    long = 2 * tokens > _LONG and rows * _LONG <= _MOST
    return _LONG if long and _LONG <= room else _SHORT


def largest_grids(
    slots: int, each: int, prompt: int, new: int, mesh: Mesh
) -> tuple[Grid, Grid, tuple[int, int]]:
    """(the grid that a long run comes to, the one before, rows and tokens of a call of prefill)
    for prompts and completions of so many tokens, `each` samples of a prompt."""
    width = max(width for width in _WIDTHS if width <= each)
    rows = whole_shards(max(1, slots // width), mesh, SEQUENCES)
    columns = bucket(new, per_octave=1)
    grid = Grid(rows, width, bucket(prompt, quantum=64), columns)
    before = grid._replace(columns=columns // 2 if new > _AHEAD else columns)
    return grid, before, (rows, piece_width(rows, prompt, grid.context))


@dataclass
class Work:
    """Tokens that the engine computed, and those that it did not have to."""

    prefilled: int = 0
    cached: int = 0
    decoded: int = 0
    capacity: int = 0  # what the slots could have decoded meanwhile


class Batcher:
    """The engine behind the in-process sampler and the server; one thread may use it."""

    def __init__(self, model: Decoder, mesh: Mesh, slots: int, version: Any = 0):
        """`slots` is the number of samples decoded at once, of `model`'s weights at first.

        A version is whatever its user calls it: a number, or a text in a server.
        """
        graphdef, self.params = nnx.split(model)
        self._programs = programs(graphdef, model.config, model.dtype, mesh)
        self._mesh, self._size, self.version = mesh, slots, version
        self.work = Work()
        self._waiting: dict[tuple[int, ...], deque[Sample]] = {}
        self._seats: dict[Sample, tuple[int, int]] = {}
        self._contexts: Any = None
        self._slots: Any = None
        self._samples: list[list[Sample | None]] = []
        self._grid, self._clock, self._now, self._idle_fits = Grid(0, 0, 0, 0), 0, 0, 0
        self._clear()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        return len(self._seats)

    def submit(self, samples: Iterable[Sample]) -> None:
        """Put samples at the end of the queue."""
        for sample in samples:
            self._waiting.setdefault(sample.context, deque()).append(sample)

    def cancel(self, sample: Sample) -> None:
        """End a sample that has not ended, at once; it keeps what it generated."""
        sample.finish_reason = "abort"
        if sample in self._seats:
            row, slot = self._seats.pop(sample)
            self._samples[row][slot] = None
        elif sample in (group := self._waiting.get(sample.context, deque())):
            group.remove(sample)
            if not group:
                del self._waiting[sample.context]

    def advance(self, steps: int = CHUNK) -> list[Sample]:
        """Fill free slots, then generate up to `steps` ≤ CHUNK tokens in each of them.

        Returns the samples that went on; those that ended have a `finish_reason`.
        """
        if self._waiting or any(self._columns(s, CHUNK) > self._grid.columns for s in self._seats):
            self._fit()
        if self._waiting:
            self._admit()
        if not self._seats:
            return []
        truncated = any(
            s.request.top_p < 1 or s.request.top_k > 0 or s.request.min_p > 0 for s in self._seats
        )
        self._slots, chunk = self._programs.decode(
            self.params, self._contexts, self._slots, self._plan(steps),
            chunk=CHUNK, truncated=truncated,
        )  # fmt: skip
        self._clock = (self._clock + int(chunk.ticks)) % self._grid.columns
        return self._harvest(chunk)

    def set_weights(self, params: Any, version: Any) -> None:
        """Generate with `params` from now on, also in samples under way, whose pasts stay.

        No context that other weights computed serves a new sample.
        """
        if params is not self.params:
            self.flush()
            for sample in self._seats:
                sample.drawn = self.version if sample.drawn is None else sample.drawn
        self.params, self.version = params, version

    def flush(self) -> None:
        """Forget every context; samples under way keep theirs."""
        self._known[:] = False

    def retract(self) -> None:
        """Send all samples under way back to the head of the queue, with their tokens."""
        retracted, waiting = list(self._seats), self._waiting
        self._waiting = {}
        for sample in retracted:
            sample.before, sample.drawn = len(sample.ids), None
            self._waiting.setdefault(sample.context, deque()).append(sample)
        for context, group in waiting.items():
            self._waiting.setdefault(context, deque()).extend(group)
        self._seats = {}
        self._samples = [[None] * self._grid.width for _ in self._samples]

    def release(self) -> None:
        """Give the device memory of contexts and slots back; samples under way are retracted."""
        self.retract()
        self._clear()

    def abandon(self) -> None:
        """As `release`, and nobody waits any more."""
        self.release()
        self._waiting = {}

    def _clear(self) -> None:
        self._grid, self._clock = Grid(0, 0, 0, 0), 0
        self._contexts = self._slots = None
        self._samples = []
        self._tokens = np.zeros((0, 0), np.int32)
        self._lengths = np.zeros(0, np.int32)
        self._known = np.zeros(0, bool)  # rows whose context can be a source
        self._used = np.zeros(0, np.int64)  # when each row was last of use

    # The grid: as small as the demand allows, of a short list of sizes.

    def _fit(self) -> None:
        """Give the grid a shape in which those who wait can be served."""
        live = [row for row, samples in enumerate(self._samples) if any(samples)]
        contexts = [*map(len, self._waiting), *self._lengths[live].tolist()]
        samples = [*self._seats, *(s for group in self._waiting.values() for s in group)]
        context = bucket(max(contexts), quantum=64)
        columns = bucket(max(self._columns(sample, _AHEAD) for sample in samples), per_octave=1)
        grid = self._grid
        width = self._width(bool(live))
        full = whole_shards(max(1, self._size // width), self._mesh, SEQUENCES)
        demand = sum(-(-len(group) // width) for group in self._waiting.values())
        demand += sum(-(-sum(map(bool, self._samples[row])) // width) for row in live)
        sizes = [size for size in self._sizes(full) if size >= min(demand, full)]

        ample = not live and 2 * context < grid.context and columns <= grid.columns
        self._idle_fits = self._idle_fits + 1 if ample else 0
        cut = self._idle_fits > _IDLE_FITS  # not at once: the contexts in the rows would be lost
        self._rearrange(
            Grid(
                sizes[0] if width != grid.width or sizes[0] > grid.rows or not live else grid.rows,
                width,
                context if cut else max(context, grid.context),
                columns if cut else max(columns, grid.columns),
            ),
            live,
        )

    @staticmethod
    def _columns(sample: Sample, ahead: int) -> int:
        """Columns that a sample takes, up to its end or `ahead` tokens from now."""
        return len(sample.ids) - sample.before + min(sample.left, ahead)

    def _width(self, busy: bool) -> int:
        """Slots of a row: as many as samples share a context; a few, so that they are refilled."""
        if not busy:
            groups = sorted(map(len, self._waiting.values()))
            return max(width for width in _WIDTHS if width <= groups[len(groups) // 2])
        width, idle = self._grid.width, self._grid.rows * self._grid.width - len(self._seats)
        seated = [sum(map(bool, samples)) for samples in self._samples]
        if width == 1 or not all(seated) or 2 * idle < width * self._grid.rows:
            return width
        half = width // 2
        room = whole_shards(max(1, self._size // half), self._mesh, SEQUENCES)
        return half if sum(-(-count // half) for count in seated) <= room else width

    def _sizes(self, full: int) -> list[int]:
        """Numbers of rows to choose from; each is a program to compile."""
        sizes = (max(1, full // part) for part in (1, 4, 16))
        return sorted({whole_shards(size, self._mesh, SEQUENCES) for size in sizes})

    def _rearrange(self, grid: Grid, live: list[int]) -> None:
        """Move what is under way, and as many other contexts as fit, into a grid of this shape."""
        if grid == self._grid:
            return
        old, held, now = self._samples, (self._tokens, self._lengths, self._known, self._used), grid
        kept: list[tuple[int, list[int]]] = []  # old row and its slots
        for row in live:
            seats = [slot for slot, sample in enumerate(old[row]) if sample]
            kept += [(row, seats[at : at + now.width]) for at in range(0, len(seats), now.width)]
        others = [
            row
            for row in np.flatnonzero(self._known & (self._lengths <= now.context)).tolist()
            if row not in live
        ]
        others.sort(key=lambda row: -self._used[row])
        assert len(kept) <= now.rows  # a sample under way always has a row
        kept += [(row, []) for row in others]
        kept = kept[: now.rows]
        rows, places = np.zeros(now.rows, np.int32), np.zeros((now.rows, now.width), np.int32)
        self._grid = now
        self._samples = [[None] * now.width for _ in range(now.rows)]
        self._tokens = np.full((now.rows, now.context), NO_TOKEN, np.int32)
        self._lengths, self._known = np.zeros(now.rows, np.int32), np.zeros(now.rows, bool)
        self._used = np.zeros(now.rows, np.int64)
        for row, (source, seats) in enumerate(kept):
            rows[row] = source
            length = held[1][source]
            self._tokens[row, :length] = held[0][source, :length]
            self._lengths[row], self._known[row] = length, held[2][source]
            self._used[row] = held[3][source]
            for slot, seat in enumerate(seats):
                sample = old[source][seat]
                assert sample is not None
                places[row, slot] = source * len(old[source]) + seat
                self._samples[row][slot], self._seats[sample] = sample, (row, slot)
        if self._contexts is None:
            self._contexts, self._slots = self._programs.empty(now)
        else:
            self._contexts, self._slots, self._clock = self._programs.rearrange(
                self._contexts, self._slots, rows, places, self._clock, now
            )

    # Contexts: who sits where, and what has to be computed for it.

    def _admit(self) -> None:
        """Seat as many of the waiting samples as there is room for, first come, first served."""
        self._now += 1
        free = self._grid.rows * self._grid.width - len(self._seats)
        if free == 0:
            return
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row in np.flatnonzero(self._known).tolist():
            held = tuple(self._tokens[row, : self._lengths[row]].tolist())
            rows_of.setdefault(held, []).append(row)
        idle = {row for row, samples in enumerate(self._samples) if not any(samples)}
        wanted: dict[int, tuple[int, ...]] = {}
        newcomers: dict[int, list[Sample]] = {}
        for context in list(self._waiting):
            if free == 0:
                break
            group = self._waiting[context]
            rows = [row for row in rows_of.get(context, []) if row not in wanted]
            while group and free:
                free_row = next((r for r in rows if not all(self._samples[r])), None)
                if free_row is None:
                    if not idle:
                        break
                    free_row = self._row_for(context, idle)
                    wanted[free_row] = context
                    rows.append(free_row)
                row = free_row
                idle.discard(row)
                self._used[row] = self._now
                while group and not all(self._samples[row]):
                    sample, slot = group.popleft(), self._samples[row].index(None)
                    self._samples[row][slot], self._seats[sample] = sample, (row, slot)
                    newcomers.setdefault(row, []).append(sample)
                    free -= 1
            if not group:
                del self._waiting[context]
        for row, samples in newcomers.items():
            for sample in samples:
                sample.cached = len(sample.request.prompt_ids)
                self.work.cached += len(sample.context)
            if row in wanted:
                samples[0].cached = 0  # until it is known what a source gave it
                self.work.cached -= len(samples[0].context)
        for row, cached in self._fill(wanted):
            newcomers[row][0].cached = min(cached, len(newcomers[row][0].request.prompt_ids))
            self.work.cached += cached

    def _row_for(self, context: tuple[int, ...], idle: set[int]) -> int:
        """The idle row that shares most with a context, or the one that was longest of no use."""
        choice = sorted(idle)
        overlap = self._overlap(np.array(context, np.int32), self._tokens[choice])
        overlap = np.where(self._known[choice], overlap, 0)
        best = int(np.argmax(overlap))
        if overlap[best] < _WORTH:
            best = int(np.argmin(np.where(self._known[choice], self._used[choice], -1)))
        return choice[best]

    @staticmethod
    def _overlap(context: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """How many tokens each row has in common with the beginning of a context."""
        width = min(len(context), rows.shape[1])
        differs = rows[:, :width] != context[:width]
        return np.where(differs.any(axis=1), differs.argmax(axis=1), width)

    def _fill(self, wanted: dict[int, tuple[int, ...]]) -> Iterator[tuple[int, int]]:
        """Compute the contexts of rows; yields each row and how many tokens a source gave it."""
        stable = self._known.copy()
        stable[list(wanted)] = False
        contexts = {row: np.array(context, np.int32) for row, context in wanted.items()}
        while contexts:
            first: dict[int, tuple[int, int]] = {}  # row → (source, tokens from it)
            leaders = np.full((len(contexts), self._grid.context), NO_TOKEN, np.int32)
            for row, context in contexts.items():
                usable = stable.copy()
                usable[row] = self._known[row]
                overlap = np.where(usable, self._overlap(context, self._tokens), 0)
                source = row if overlap[row] == overlap.max() else int(np.argmax(overlap))
                self._used[source] = self._now
                given = int(overlap[source])
                if given == len(context) and self._lengths[source] > given:
                    given -= 1  # the logits after it are not at hand
                ahead = max(self._overlap(context, leaders[: len(first)]), default=0)
                if ahead < min(given + _WORTH, max(given + 1, len(context))):
                    leaders[len(first), : len(context)] = context
                    first[row] = source, given
            self._compute({row: (contexts[row], *first[row]) for row in first})
            for row, (_, given) in first.items():
                context = contexts.pop(row)
                self._tokens[row] = NO_TOKEN
                self._tokens[row, : len(context)] = context
                self._lengths[row], self._known[row], stable[row] = len(context), True, True
                yield row, given

    def _compute(self, entries: dict[int, tuple[np.ndarray, int, int]]) -> None:
        """Fill rows with (context, source row, tokens to take from it)."""
        copies = [
            (row, source)
            for row, (context, source, given) in entries.items()
            if given == len(context) and source != row
        ]
        for part in self._parts(copies):
            rows, sources = np.array(part, np.int32).T
            self._contexts = self._programs.copy(self._contexts, rows, sources)
        left = [
            (row, source, given, context)
            for row, (context, source, given) in entries.items()
            if given < len(context)
        ]
        self.work.prefilled += sum(len(context) - given for _, _, given, context in left)
        while left:
            left.sort(key=lambda entry: entry[2] - len(entry[3]))
            after = []
            for part in self._parts(left):
                most = max(len(context) - given for _, _, given, context in part)
                width = piece_width(len(part), most, self._grid.context)
                tokens = np.zeros((len(part), width), np.int32)
                counts = np.zeros(len(part), np.int32)
                # A piece must end within the row: what it then begins with is computed again.
                starts = [min(given, self._grid.context - width) for _, _, given, _ in part]
                for i, (row, _, _, context) in enumerate(part):
                    piece = context[starts[i] : starts[i] + width]
                    tokens[i, : len(piece)], counts[i] = piece, len(piece)
                    after.append((row, row, starts[i] + len(piece), context))
                rows, sources = (np.array([entry[i] for entry in part], np.int32) for i in (0, 1))
                offsets = np.array(starts, np.int32)
                self._contexts = self._programs.prefill(
                    self.params, self._contexts, Piece(rows, sources, offsets, tokens, counts)
                )
            left = list({entry[0]: entry for entry in after if entry[2] < len(entry[3])}.values())

    def _parts(self, entries: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """Entries in calls of few sizes; the last is filled up with its first entry."""
        rows = self._grid.rows
        sizes = [size for size in _ROWS if size < rows] + [rows]
        entries = list(entries)
        while entries:
            size = max(sizes[:1] + [size for size in sizes if size < 2 * len(entries)])
            part, entries = entries[:size], entries[size:]
            yield part + part[:1] * (size - len(part))

    # Decoding.

    def _plan(self, steps: int) -> Plan:
        rows, width = self._grid.rows, self._grid.width
        count = rows * width
        seated = [sample for samples in self._samples for sample in samples]
        places = [place for place, sample in enumerate(seated) if sample]
        samples = [sample for sample in seated if sample]
        requests = [sample.request for sample in samples]

        def column(values: Iterable[Any], dtype: Any) -> np.ndarray:
            array = np.zeros(count, dtype)
            array[places] = list(values)
            return array.reshape(rows, width)

        stops = bucket(max(1, *(len(r.stop_ids) for r in requests), 0), quantum=4)
        stop_ids = np.full((count, stops), NO_TOKEN, np.int32)
        for place, request in zip(places, requests, strict=True):
            stop_ids[place, : len(request.stop_ids)] = request.stop_ids
        enough = max(1, len(samples) // _REFILL) if self._waiting else len(samples)
        return Plan(
            lengths=self._lengths,
            live=column((True for _ in samples), bool),
            ages=column((len(s.ids) - s.before for s in samples), np.int32),
            left=column((s.left for s in samples), np.int32),
            choice=Choice(
                temperature=column((r.temperature for r in requests), np.float32),
                top_p=column((r.top_p for r in requests), np.float32),
                top_k=column((r.top_k for r in requests), np.int32),
                min_p=column((r.min_p for r in requests), np.float32),
                seeds=column((s.seed for s in samples), np.int32),
                before=column((s.before for s in samples), np.int32),
            ),
            stop_ids=stop_ids.reshape(rows, width, stops),
            clock=np.int32(self._clock),
            steps=np.int32(min(steps, CHUNK)),
            enough=np.int32(enough),
        )

    def _harvest(self, chunk: Chunk) -> list[Sample]:
        """Hand out what a chunk generated, and free the slots of those that ended."""
        touched = list(self._seats)
        ticks = int(chunk.ticks)
        self.work.capacity += ticks * self._grid.rows * self._grid.width
        for sample in touched:
            seat = self._seats[sample]
            count = int(chunk.counts[seat])
            sample.extend(
                chunk.tokens[seat][:count].tolist(),
                chunk.logprobs[seat][:count].tolist(),
                self.version,
            )
            self.work.decoded += count
            if chunk.stopped[seat]:
                sample.finish_reason = "stop"
            elif sample.left <= 0:
                sample.finish_reason = "length"
            if sample.finish_reason:
                row, slot = self._seats.pop(sample)
                self._samples[row][slot] = None
        return touched
