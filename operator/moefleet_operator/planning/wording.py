"""Numbers in sentences: "1 replica is", "2 of 3 replicas are", "there is none"."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """`1 replica`, `3 replicas`, `0 replicas`."""
    return f"{number} {noun if number == 1 else noun + 's'}"


def count_are(number: int, noun: str) -> str:
    """`1 replica is`, `3 replicas are`."""
    return f"{count(number, noun)} {are(number)}"


def share_are(part: int, whole: int, noun: str, which: str = "") -> str:
    """`0 of 1 replica is`, `1 of 3 replicas is`, `2 of 3 replicas are`."""
    nouns = f"{count(whole, noun)} {which}".rstrip()
    return f"{part} of {nouns} {are(1 if whole == 1 else part)}"


def there_are(number: int) -> str:
    return "there is none" if number == 0 else f"there {are(number)} {number}"


def are(number: int) -> str:
    return "is" if number == 1 else "are"
