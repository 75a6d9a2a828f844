"""Check the dashboards against Grafana's own types: `@grafana/schema` and the TypeScript compiler, from npm.

.venv/bin/python -m grafana.typed

Needs Node, npm and its registry, and so is no part of the tests; to be run after the dashboards' code changes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from grafana.story import found
from grafana.write import boards

PACKAGES = ("@grafana/schema@13.2.3", "typescript@5.9.3")
HEAD = """import type { AnnotationQuery, Dashboard, VariableModel } from "@grafana/schema";
// JSON has words where the types have enums.
type Plain<T> = T extends string ? (string extends T ? string : `${T}`) : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
// What the data source adds to an annotation, and Grafana to a variable, is in no type of the schema.
type Note = AnnotationQuery & { expr: string; step: string; titleFormat: string; textFormat: string };
type Typed = Plain<Omit<Dashboard, "annotations" | "templating">> & {
  annotations: { list: Plain<Note>[] };
  templating: { list: Plain<VariableModel & { definition?: string }>[] };
};
"""
OPTIONS = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--moduleResolution", "nodenext",
           "--target", "es2022")  # fmt: skip


def check(folder: Path) -> str:
    """What the compiler finds, empty if nothing; raises CalledProcessError where npm fails."""
    (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
    npm = [found("npm"), "install", "--no-audit", "--no-fund", "--silent", "--ignore-scripts", *PACKAGES]
    subprocess.run(npm, cwd=folder, check=True, timeout=600)
    sources = []
    for name, text in boards().items():
        source = folder / name.replace(".json", ".ts")
        source.write_text(f"{HEAD}export const dashboard = {text.rstrip()} satisfies Typed;\n")
        sources.append(source.name)
    tsc = folder / "node_modules" / ".bin" / "tsc"
    done = subprocess.run([tsc, *OPTIONS, *sources], cwd=folder, capture_output=True, text=True, timeout=600)
    return done.stdout + done.stderr


def main() -> None:
    """Print what is wrong; exit code 1 if anything is."""
    with tempfile.TemporaryDirectory() as folder:
        found_wrong = check(Path(folder))
    if found_wrong:
        sys.exit(found_wrong)


if __name__ == "__main__":
    main()
