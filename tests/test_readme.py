"""README.md and README.ja.md say the same, and what they name is there."""

import re

from conftest import ROOT

ENGLISH, JAPANESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ja.md"))


def commands(text: str) -> list[str]:
    """The indented lines and the blocks of code, without their comments, which are translated."""
    lines = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    return [re.sub(r"\s+# .*", "", part) for part in [*lines, *re.findall(r"```\w+\n(.*?)```", text, re.DOTALL)]]


def test_both_pages_have_the_same_commands_headings_links_pictures_and_figures():
    assert len(commands(ENGLISH)) > 10 and commands(ENGLISH) == commands(JAPANESE)
    assert ENGLISH.count("\n## ") == JAPANESE.count("\n## ")
    links = [re.findall(r"\]\((?!README)(.*?)\)", text) for text in (ENGLISH, JAPANESE)]
    assert sorted(links[0]) == sorted(links[1])
    # Every number with a decimal point, a comma or at least two digits
    numbers = [sorted(re.findall(r"\d+[.,]\d+|\d{2,}", text.replace("100万", "").replace("a million", "")))
               for text in (ENGLISH, JAPANESE)]  # fmt: skip
    assert numbers[0] == numbers[1]


def test_what_the_page_names_is_there_and_it_is_short():
    assert len(ENGLISH.splitlines()) <= 130
    for link in re.findall(r"\]\(([\w./-]+)\)", ENGLISH):
        assert (ROOT / link).exists(), link
    for recipe in re.findall(r"`(\w+\.yaml)`", ENGLISH.split("## Train")[1].split("\n## ")[0]):
        assert (ROOT / "recipes" / recipe).exists() or (ROOT / recipe).exists(), recipe
    made = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "train"} <= {name for name in re.findall(r"make ([\w-]+)", ENGLISH)} <= made | {"test", "faults"}
