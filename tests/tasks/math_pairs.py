r"""Pairs of gold and answer whose grade follows from math-verify's documented conventions.

Each family is one convention: a template filled with values.  `pairs` gives (family, gold, answer,
whether they are equal).
"""

from collections.abc import Iterator
from fractions import Fraction

Pair = tuple[str, str, str, bool]


def pairs() -> list[Pair]:
    """All of them, in a fixed order."""
    return [
        (family.__name__, gold, answer, equal)
        for family in FAMILIES
        for gold, answer, equal in family()
    ]


Family = Iterator[tuple[str, str, bool]]


def whole_numbers() -> Family:
    for n in (0, 1, 7, 12, 31, 96, 144, 365, 1001, 46368):
        yield str(n), str(n), True
        yield str(n), f"{n}.0", True
        yield str(n), str(n + 1), False
        yield str(-n - 1), str(n + 1), False


def thousands() -> Family:
    for n in (1234, 20000, 1500000, 98765, 7000):
        yield str(n), f"{n:,}", True
        yield f"{n:,}", str(n), True
        yield str(n), f"{n + 10:,}", False


def fractions() -> Family:
    for a, b in (
        (1, 2),
        (3, 4),
        (7, 8),
        (5, 16),
        (9, 25),
        (11, 40),
        (13, 5),
        (1, 8),
        (3, 10),
        (7, 20),
    ):
        yield rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}", True
        yield rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a}}}{{{b}}}", True
        yield rf"\frac{{{a}}}{{{b}}}", rf"\tfrac{{{2 * a}}}{{{2 * b}}}", True
        yield rf"\frac{{{a}}}{{{b}}}", str(float(Fraction(a, b))), True
        yield rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{b}}}{{{a}}}", False
        yield rf"\frac{{{a}}}{{{b}}}", rf"-\frac{{{a}}}{{{b}}}", False


def signs_of_fractions() -> Family:
    for a, b in ((1, 2), (2, 3), (5, 7), (9, 4)):
        yield rf"-\frac{{{a}}}{{{b}}}", rf"\frac{{-{a}}}{{{b}}}", True
        yield rf"-\frac{{{a}}}{{{b}}}", rf"\frac{{{a}}}{{-{b}}}", True
        yield rf"-\frac{{{a}}}{{{b}}}", rf"\frac{{-{a}}}{{-{b}}}", False


def repeating_decimals() -> Family:
    """Floats are compared after rounding to six decimals."""
    for a, b in ((1, 3), (2, 7), (5, 9), (4, 11)):
        yield rf"\frac{{{a}}}{{{b}}}", f"{a / b:.9f}", True
        yield rf"\frac{{{a}}}{{{b}}}", f"{a / b:.2f}", False


def mixed_numbers() -> Family:
    for whole, a, b in ((1, 1, 2), (2, 3, 4), (5, 1, 8), (3, 2, 5)):
        yield rf"{whole}\frac{{{a}}}{{{b}}}", str(whole + a / b), True
        yield rf"{whole}\frac{{{a}}}{{{b}}}", rf"\frac{{{whole * b + a}}}{{{b}}}", True
        yield rf"{whole}\frac{{{a}}}{{{b}}}", rf"\frac{{{whole * a}}}{{{b}}}", False


def decimals() -> Family:
    for text in ("0.5", "2.75", "13.125", "0.04"):
        yield text, f"{text}00", True
        yield text, f"0{text}", True
        yield text, text + "1", False
    yield "0.5", ".5", True


def roots() -> Family:
    for k, n in ((2, 2), (3, 2), (2, 3), (5, 3), (4, 7), (6, 5), (7, 11)):
        yield rf"{k}\sqrt{{{n}}}", rf"\sqrt{{{k * k * n}}}", True
        yield rf"\frac{{{k}}}{{\sqrt{{{n}}}}}", rf"\frac{{{k}\sqrt{{{n}}}}}{{{n}}}", True
        yield rf"{k}\sqrt{{{n}}}", rf"\sqrt{{{k * n}}}", False
    yield r"2", r"\sqrt[3]{8}", True
    yield r"3", r"\sqrt[4]{81}", True
    yield r"3", r"\sqrt[3]{81}", False


def powers() -> Family:
    for b, e in ((2, 10), (3, 5), (5, 4), (7, 3)):
        yield f"{b}^{{{e}}}", str(b**e), True
        yield f"{b}^{e}" if e < 10 else f"{b}^{{{e}}}", str(b**e + 1), False
        yield f"{b}^{{-{e}}}", rf"\frac{{1}}{{{b**e}}}", True


def scientific_notation() -> Family:
    for m, e in (("1.5", 3), ("2", 6), ("6.02", 4), ("9.1", 2)):
        yield rf"{m} \times 10^{{{e}}}", f"{float(m) * 10**e:.1f}", True
        yield rf"{m} \times 10^{{{e}}}", rf"{m} \cdot 10^{{{e}}}", True
        yield rf"{m} \times 10^{{{e}}}", rf"{m} \times 10^{{{e + 1}}}", False


def polynomials() -> Family:
    for n in range(1, 11):
        yield f"(x+{n})^2", f"x^2+{2 * n}x+{n * n}", True
        yield f"x^2-{n * n}", f"(x-{n})(x+{n})", True
        yield f"x^2+{n}x", f"x({n}+x)", True
        yield f"(x+{n})^2", f"x^2+{n * n}", False
        yield f"x^2+{n}", f"y^2+{n}", False


def constants() -> Family:
    for k in (2, 3, 4, 9):
        yield rf"{k}\pi", rf"\pi \cdot {k}", True
        yield rf"{k}\pi", rf"{k + 1}\pi", False
        yield rf"\frac{{\pi}}{{{k}}}", rf"\frac{{1}}{{{k}}}\pi", True
        yield rf"{k}e", rf"{k}\pi", False


def functions() -> Family:
    yield r"\ln 2", r"\ln(2)", True
    yield r"2", r"\ln(e^2)", True
    yield r"3", r"\log_2 8", True
    yield r"\frac{1}{2}", r"\sin\frac{\pi}{6}", True
    yield r"\frac{\sqrt{3}}{2}", r"\cos\frac{\pi}{6}", True
    yield r"1", r"\tan\frac{\pi}{4}", True
    yield r"120", r"5!", True
    yield r"10", r"\binom{5}{2}", True
    yield r"3", r"|-3|", True
    yield r"\ln 2", r"\ln 3", False
    yield r"1", r"\sin\frac{\pi}{6}", False
    yield r"24", r"5!", False


def sets() -> Family:
    """A set has no order; braces may be left out."""
    for members in ((1, 2), (3, 5, 8), (-1, 0, 1), (2, 4, 6, 8)):
        listed = ",".join(map(str, members))
        backwards = ",".join(map(str, reversed(members)))
        yield rf"\{{{listed}\}}", rf"\{{{backwards}\}}", True
        yield rf"\{{{listed}\}}", listed, True
        yield listed, backwards, True
        yield rf"\{{{listed}\}}", rf"\{{{listed},99\}}", False
        yield rf"\{{{listed}\}}", str(members[0]), False


def tuples() -> Family:
    """A tuple has an order."""
    for a, b in ((1, 2), (3, -4), (0, 7), (5, 9)):
        yield f"({a},{b})", f"({a}, {b})", True
        yield f"({a},{b})", rf"\left({a},{b}\right)", True
        yield f"({a},{b})", f"({b},{a})", False
        yield f"({a},{b})", f"({a},{b + 1})", False


def intervals() -> Family:
    for a, b in ((0, 1), (-2, 3), (5, 8), (-9, -4), (10, 12)):
        yield f"[{a},{b}]", rf"\left[{a}, {b}\right]", True
        yield f"[{a},{b})", f"[{a},{b})", True
        yield f"[{a},{b}]", f"[{a},{b})", False
        yield f"({a},{b}]", f"[{a},{b}]", False
        yield f"[{a},{b}]", f"[{a},{b + 1}]", False


def unions() -> Family:
    for a, b in ((0, 1), (-3, 2), (4, 10)):
        gold = rf"(-\infty,{a}) \cup ({b},\infty)"
        yield gold, rf"({b},\infty) \cup (-\infty,{a})", True
        yield gold, rf"(-\infty,{a}] \cup ({b},\infty)", False
        yield gold, rf"(-\infty,{a})", False
    yield r"\{1,2,3,4\}", r"\{1,3\} \cup \{2,4\}", True


def assignments() -> Family:
    """x = 5 is read as 5."""
    for name, n in (("x", 5), ("y", -3), ("n", 12), ("t", 40), ("k", 7), ("z", -1)):
        yield f"{name}={n}", str(n), True
        yield str(n), f"{name}={n}", True
        yield str(n), f"{name} = {n + 1}", False


def equations() -> Family:
    for m, c in ((2, 1), (3, -4), (5, 7), (4, -9)):
        line = f"y={m}x{c:+d}"
        yield line, f"y = {m}x {c:+d}", True
        yield line, f"y={m}x{c + 1:+d}", False
        yield line, f"y={m + 1}x{c:+d}", False


def inequalities() -> Family:
    """A relation of one variable is the interval of its solutions."""
    for n in (1, 4, -2, 7):
        yield f"x > {n}", f"{n} < x", True
        yield rf"x \ge {n}", rf"x \geq {n}", True
        yield f"x > {n}", rf"({n},\infty)", True
        yield f"x > {n}", f"x < {n}", False
        yield f"x > {n}", rf"x \geq {n}", False


def units() -> Family:
    for n, unit in ((5, "cm"), (30, "km"), (12, "apples"), (90, "minutes"), (4, "dollars")):
        yield str(n), rf"{n} \text{{ {unit}}}", True
        yield str(n), rf"{n}\text{{ {unit}}}", True
        yield rf"{n} \text{{ {unit}}}", str(n), True
        yield str(n), rf"{n + 2} \text{{ {unit}}}", False


def degrees() -> Family:
    for n in (15, 30, 45, 90, 120, 150):
        yield rf"{n}^\circ", str(n), True
        yield str(n), rf"{n}^{{\circ}}", True
        yield rf"{n}^\circ", rf"{n + 5}^\circ", False


def money() -> Family:
    for n in ("5", "12.50", "300"):
        yield n, rf"\${n}", True
        yield rf"\${n}", n, True
        yield n, rf"\${n}1", False


def percentages() -> Family:
    """A share may be given as a percentage or as its hundredth."""
    for n in (5, 20, 75, 12, 40, 99):
        yield rf"{n}\%", rf"{n}\%", True
        yield rf"{n}\%", str(n / 100), True
        yield rf"{n}\%", rf"{n + 1}\%", False


def complex_numbers() -> Family:
    for a, b in ((3, 2), (1, 5), (4, 7), (8, 3), (6, 11)):
        yield f"{a}+{b}i", f"{b}i+{a}", True
        yield f"{a}-{b}i", f"{a}+{b}i", False
        yield f"{a}+{b}i", f"{b}+{a}i", False


def matrices() -> Family:
    for a, b, c, d in ((1, 2, 3, 4), (0, 1, 1, 0), (5, -2, 7, 9)):
        rows = rf"{a} & {b} \\ {c} & {d}"
        gold = rf"\begin{{pmatrix}}{rows}\end{{pmatrix}}"
        yield gold, rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}", True
        yield gold, rf"\begin{{bmatrix}}{rows}\end{{bmatrix}}", True
        other = rf"\begin{{pmatrix}}{c} & {d} \\ {a} & {b}\end{{pmatrix}}"
        yield gold, other, False


def words() -> Family:
    for word, other in (("Tuesday", "Friday"), ("Evelyn", "Briana"), ("even", "odd")):
        yield rf"\text{{{word}}}", rf"\text{{{word}}}", True
        yield rf"\text{{{word}}}", rf"\text{{{other}}}", False


FAMILIES = (
    whole_numbers,
    thousands,
    fractions,
    signs_of_fractions,
    repeating_decimals,
    mixed_numbers,
    decimals,
    roots,
    powers,
    scientific_notation,
    polynomials,
    constants,
    functions,
    sets,
    tuples,
    intervals,
    unions,
    assignments,
    equations,
    inequalities,
    units,
    degrees,
    money,
    percentages,
    complex_numbers,
    matrices,
    words,
)
