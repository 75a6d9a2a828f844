"""Write `dashboards/*.json` from the code.

.venv/bin/python -m grafana.write
"""

from __future__ import annotations

from pathlib import Path

from grafana import feature, labels, model, models, monitor

FOLDER = Path(__file__).parent / "dashboards"


def boards() -> dict[str, str]:
    """File name -> JSON of every dashboard."""
    made = [module.board() for module in (models, model, feature, labels, monitor)]
    return {f"{board.uid.removeprefix('stream-monitor-')}.json": board.to_json() for board in made}


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in boards().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
