"""Assertions of bench_selftest.py that say what was found."""

from __future__ import annotations


def expect(is_so: bool, what: object) -> None:
    if not is_so:
        raise AssertionError(what)


def equal(found: object, wanted: object) -> None:
    expect(found == wanted, f"{found!r} instead of {wanted!r}")
