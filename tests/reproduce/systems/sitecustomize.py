"""Puts the experiments of this folder in place of the real ones in a started process."""

from pathlib import Path

import trimtab.reproduce

trimtab.reproduce.__path__.insert(0, str(Path(__file__).parent))
