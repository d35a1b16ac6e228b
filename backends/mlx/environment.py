"""Variables that Metal reads once, when MLX starts. Imports no mlx."""

from __future__ import annotations

# Metal's watchdog ends a long kernel while the display is on.
DARWIN = {"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1"}
