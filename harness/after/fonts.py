"""Fonts: those of this machine that have the characters of a text; matplotlib's own has no Japanese."""

from functools import cache
from pathlib import Path

from matplotlib import font_manager

OWN = "DejaVu Sans"


def fonts_for(text: str) -> tuple[list[str], set[str]]:
    """(families to draw it with, as matplotlib falls back from one to the next; the characters that none has)"""
    lacking = {character for character in text if not character.isspace()} - _characters(font_manager.findfont(OWN))
    # Not matplotlib's list of fonts, which is kept from its first start: one may have been installed since.
    files = font_manager.findSystemFonts() if lacking else []
    families = [OWN]
    while lacking:
        best = max(files, key=lambda file: (len(lacking & _characters(file)), _plain(file)), default=None)
        if best is None or not lacking & _characters(best):
            break
        families.append(name := font_manager.get_font(best).family_name)
        if name not in font_manager.fontManager.get_font_names():
            font_manager.fontManager.addfont(best)
        lacking -= _characters(best)
    return families, lacking


def replaced(text: str, lacking: set[str]) -> str:
    """The text where no font has some of its characters: with ? in their place, and what is missing."""
    if not lacking & set(text):
        return text
    return "".join("?" if character in lacking else character for character in text) + " (install a font for it)"


@cache
def _characters(file: str) -> frozenset[str]:
    try:
        font = font_manager.get_font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()  # not pictures, as emoji are
    except (OSError, RuntimeError):  # damaged
        return frozenset()


def _plain(file: str) -> int:
    """How much it looks like the rest of the picture: neither bold nor slanted, and without serifs."""
    name = Path(file).stem.lower()
    return ("sans" in name or "gothic" in name) - 2 * any(
        kind in name for kind in ("bold", "black", "thin", "light", "italic", "oblique")
    )
