"""The report: what a run left behind that a person can look at."""

from pathlib import Path

import yaml


def write_report(trainer, settings) -> None:
    folder = Path(trainer.args.output_dir)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(settings.merged, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
