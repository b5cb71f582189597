"""How numbers are written for people."""

import math


def number(value: float) -> str:
    """Returns a metric's value with the digits that matter.

    Four decimals below 10, as for losses, probabilities and error rates; two below 1,000, as for
    perplexities; none above. A value too small for four decimals is written with an exponent.
    """
    size = abs(value)
    if not math.isfinite(value):
        return str(float(value))
    if size and size < 0.001:
        return f"{value:.1e}"
    if size < 10:
        return f"{value:.4f}"
    return f"{value:.2f}" if size < 1000 else f"{value:,.0f}"
