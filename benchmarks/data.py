"""Seconds and memory of `--check` on a million rows of JSONL and of CSV, with nothing in datasets' cache.

python benchmarks/data.py
python benchmarks/data.py --rows 100000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def write_rows(count: int, path: Path) -> None:
    """The demo's questions, numbered so that no two are the same, with their answers; none holds a comma."""
    known = [json.loads(line) for line in (ROOT / "demo/questions.jsonl").open(encoding="utf-8")]
    table = path.suffix == ".csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("query,answer\n" if table else "")
        for i in range(count):
            fact = known[i % len(known)]
            row = {"query": f"{i}番: {fact['query']}", "answer": fact["answer"]}
            file.write((",".join(row.values()) if table else json.dumps(row, ensure_ascii=False)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    for ending in ("jsonl", "csv"):
        with tempfile.TemporaryDirectory() as folder:
            write_rows(rows, path := Path(folder) / f"rows.{ending}")
            command = [sys.executable, "train_grpo.py", "--config", "demo/config.yaml", "--dataset.path", str(path)]
            begin, env = time.perf_counter(), os.environ | {"HF_DATASETS_CACHE": f"{folder}/cache"}
            process = subprocess.Popen([*command, "--check"], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
            _, status, used = os.wait4(process.pid, 0)
            seconds, memory = time.perf_counter() - begin, used.ru_maxrss / 1024
            cpu = used.ru_utime + used.ru_stime
            print(f"{rows:,} rows of {ending}: {seconds:.1f} s ({cpu:.1f} of CPU), {memory:.0f} MB, status {status}")


if __name__ == "__main__":
    main()
