"""Proven lower bounds on the words that a rank must receive in C = A B (M x K times K x N over P
ranks).
"""

from math import sqrt


def memory_independent(m: int, n: int, k: int, ranks: int) -> float:
    """The tight bound when memory is no limit, each rank starting with 1/P of A and B and ending
    with 1/P of C.

    Source: Al Daas, Ballard, Grigori, Kumar, Rouse, "Tight Memory-Independent Parallel Matrix
    Multiplication Communication Lower Bounds" (SPAA 2022, arXiv 2205.13407), theorem 3, three cases
    by how P compares with the dimensions' ratios. A grid whose sides divide the dimensions as the
    bound's minimiser wants meets it exactly.
    """
    a, b, c = sorted((m, n, k), reverse=True)
    if c == 0:
        return 0.0
    if ranks <= a / b:
        return (1 - 1 / ranks) * b * c
    if ranks <= a * b / c**2:
        return 2 * sqrt(a * b * c**2 / ranks) - (a * c + b * c) / ranks
    return float(3 * (a * b * c / ranks) ** (2 / 3) - (a * b + a * c + b * c) / ranks)


def limited_memory(m: int, n: int, k: int, ranks: int, memory_words: float) -> float:
    """COSMA's bound on the words loaded into a fast memory of S words: Q >= 2mnk / (P sqrt(S)) + S.

    It counts what a rank loads of its own shares too, so an algorithm may move less than this; it
    says nothing at small P. Source: Kwasniewski et al., "Red-Blue Pebbling Revisited" (SC 2019,
    arXiv 1908.09606), theorem 2.
    """
    if min(m, n, k) == 0:
        return 0.0
    return 2 * m * n * k / (ranks * sqrt(memory_words)) + memory_words
