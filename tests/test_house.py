"""The house: imports go one way, in the order of CONTRIBUTING.md; it stays thin, and clear enough to be read aloud."""

import ast
import io
import tokenize

from conftest import ROOT

ORDER = [
    *("errors", "files", "processes", "rewards_file", "reward", "keys", "settings", "run_folder"),
    *("before.policy", "before.text_files", "before.read_rows", "before.messages", "before.data", "before.footprint"),
    *("before.plan", "before.resume", "before.machine", "before.arguments", "before.miniature", "before.cheats"),
    "before.check",
    *("during.padding", "during.trainer", "during.stop", "during.checkpoints", "during.watch", "during.progress"),
    "end",
    *("after.samples", "after.verdict", "after.curves", "after.card", "after.report"),
    *("tools.read", "tools.rehearse", "tools.score", "tools.chat", "tools.compare", "tools.merge", "tools.launch"),
    "__main__",
]
FILES = {
    ".".join(file.relative_to(ROOT / "harness").with_suffix("").parts): file.read_text(encoding="utf-8")
    for file in (ROOT / "harness").rglob("*.py")
    if file.stem != "__init__"
}
ALL = {**FILES, "train_grpo": (ROOT / "train_grpo.py").read_text(encoding="utf-8")}
NODES = 36_500  # syntax nodes, contexts aside; TRL's GRPO trainer with its config has 14,700, nanochat 24,200
NODES_A_LINE = 7.5  # of code: without blank lines, comments and docstrings; nanochat has 6.2


def nodes(text: str) -> int:
    return sum(not isinstance(node, ast.expr_context) for node in ast.walk(ast.parse(text)))


def lines_of_code(text: str) -> int:
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string.strip() and token.type != tokenize.COMMENT:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        has_docstring = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if has_docstring and ast.get_docstring(node, clean=False) is not None:
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(code)


def test_the_house_is_thin_and_clear():
    whole = sum(map(nodes, ALL.values()))
    assert whole <= NODES
    assert whole / sum(map(lines_of_code, ALL.values())) <= NODES_A_LINE
    assert len(ALL) <= 42
    assert [name for name, text in ALL.items() if len(text.splitlines()) > 450] == []


def test_imports_go_one_way_and_run_no_code_of_the_users():
    wrong = []
    for name, text in FILES.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):  # those under TYPE_CHECKING and in functions too
            module = getattr(node, "module", None) or "" if isinstance(node, ast.ImportFrom) else ""
            imported = module.removeprefix("harness.")
            if imported != module and ORDER.index(imported) >= ORDER.index(name):
                wrong.append(f"{name} imports {imported}")
        at_the_top = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        wrong += [line for line in at_the_top if "rewards" in line.split()]  # reward.rewards_py does it when called
    assert wrong == [] and set(FILES) == set(ORDER)
