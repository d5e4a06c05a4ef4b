"""Numbers and times as short text, for axes, tables and progress lines."""


def number(value: float) -> str:
    """Return a short text of a number: 12500 -> "12.5k", 0.0003 -> "3e-4"."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size and size < 1e-3:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a short text of a time in seconds: 45 -> "45s", 190 -> "3m10s", 3750 -> "1h02m"."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded}s"
    if rounded < 3600:
        return f"{rounded // 60}m{rounded % 60:02d}s"
    return f"{rounded // 3600}h{rounded % 3600 // 60:02d}m"
