"""Compare the shapes that a model expects with the shapes that were found."""

from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]


def mismatches(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str:
    """Describe what is missing, unknown, or of a different shape; an empty string if everything fits.

    mismatches({"a": (2,), "b": (3,)}, {"b": (4,), "c": (1,)})
    ->  "1 missing (a); 1 unknown (c); 1 of a different shape (b is [4], expected [3])"
    """
    different = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    lists = {
        "missing": [name for name in expected if name not in found],
        "unknown": [name for name in found if name not in expected],
        "of a different shape": different,
    }
    return "; ".join(f"{len(names)} {kind} ({abbreviate(names)})" for kind, names in lists.items() if names)


def abbreviate(names: Sequence[str], count: int = 6) -> str:
    """Return the first names and the number of the others: "a, b and 3 more"."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
