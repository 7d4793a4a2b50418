"""The house: imports go one way, in the order of CONTRIBUTING.md, and every file can be read in one sitting."""

import ast

from conftest import ROOT

ORDER = [
    *["errors", "files", "processes", "rewards_file", "reward", "keys", "yaml_files", "settings", "run_folder"],
    *[
        f"before.{name}"
        for name in (
            "policy",
            "text_files",
            "kept_rows",
            "read_rows",
            "messages",
            "data",
            "footprint",
            "plan",
            "resume",
            "machine",
            "weights",
            "miniature",
            "check",
            "forecast",
            "clock",
            "rehearse",
            "fit",
        )
    ],
    *[f"during.{name}" for name in ("padding", "trainer", "stop", "checkpoints", "windows", "watch", "progress")],
    *[f"after.{name}" for name in ("samples", "verdict", "fonts", "curves", "card", "report")],
    *[f"tools.{name}" for name in ("end", "score", "trained", "chat", "compare", "merge", "read", "launch")],
    "__main__",
]
FILES = {
    ".".join(file.relative_to(ROOT / "harness").with_suffix("").parts): file.read_text(encoding="utf-8")
    for file in (ROOT / "harness").rglob("*.py")
    if file.stem != "__init__"
}


def test_imports_go_one_way():
    wrong = []
    for name, text in FILES.items():
        for node in ast.walk(ast.parse(text)):  # those under TYPE_CHECKING and in functions too
            module = getattr(node, "module", None) or "" if isinstance(node, ast.ImportFrom) else ""
            imported = module.removeprefix("harness.")
            if imported != module and ORDER.index(imported) >= ORDER.index(name):
                wrong.append(f"{name} imports {imported}")
    assert wrong == [] and set(FILES) == set(ORDER)


def test_importing_the_house_runs_no_code_of_the_users():
    imports = [
        (name, ast.unparse(node))
        for name, text in FILES.items()
        for node in ast.parse(text).body  # at the top of a file; reward.rewards_py imports it when it is called
        if isinstance(node, ast.Import | ast.ImportFrom) and "rewards" in ast.unparse(node).split()
    ]
    assert imports == []


def test_no_file_is_long():
    assert [name for name, text in FILES.items() if len(text.splitlines()) > 250] == []
