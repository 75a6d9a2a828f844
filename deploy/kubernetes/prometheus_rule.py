"""Writes the rules of Prometheus as an object of its operator: python deploy/kubernetes/prometheus_rule.py"""

from __future__ import annotations

from pathlib import Path

import yaml

DEPLOY = Path(__file__).parents[1]
RULES = DEPLOY / "prometheus" / "rules.yaml"
WRITTEN = DEPLOY / "kubernetes" / "overlays" / "monitoring" / "prometheusrule.yaml"


class Plain(yaml.SafeDumper):
    """Writes what an anchor stands for in full: people read this file beside the other."""

    def ignore_aliases(self, data: object) -> bool:
        """All of them."""
        del data
        return True


def prometheus_rule() -> str:
    """The object as text. Comments stay behind: the reasons stand in the rules file."""
    body = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "stream-monitor"},
        "spec": {"groups": yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]},
    }
    return "# Written by deploy/kubernetes/prometheus_rule.py from deploy/prometheus/rules.yaml.\n" + yaml.dump(
        body, Dumper=Plain, sort_keys=False, width=110
    )


if __name__ == "__main__":
    WRITTEN.write_text(prometheus_rule(), encoding="utf-8")
