"""Checks the shapes and dtypes of every annotated function of the package while it is tested."""

from pathlib import Path

from jaxtyping import install_import_hook

PACKAGE = Path(__file__).resolve().parents[2] / "research" / "attention"

# All modules but the registry, whose options check their types themselves, in their own words.
install_import_hook(
    [
        f"research.attention.{module.stem}"
        for module in sorted(PACKAGE.glob("*.py"))
        if module.stem not in ("__init__", "registry")
    ],
    "beartype.beartype",
)
