"""Kernels are used where they are shown to be exact: on this GPU, in this number format, by this version of Triton."""

import warnings
from collections.abc import Callable


def shown_exact(name: str, difference: Callable[[], float], tolerance: float) -> bool:
    """True if a kernel can be used, by a comparison with plain PyTorch; where not, a warning says why.

    Args:
        name: what it computes and where, for the warning.
        difference: runs both and returns the largest difference, as a share of the largest entry.
        tolerance: what is still rounding.
    """
    try:
        found = difference()
    except Exception as error:  # Triton is missing, too old for the GPU, or refuses the kernel: it all means the same
        reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
    else:
        if found <= tolerance:
            return True
        reason = f"they differ from plain PyTorch by {found:.1e}, more than {tolerance:.0e}"
    warnings.warn(f"The kernels of {name} are not used, plain PyTorch is, which is slower: {reason}.", stacklevel=2)
    return False
