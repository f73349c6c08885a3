"""Every study starts from a checkout: as a script, which has only its own folder on the path, and as a module."""

import subprocess
import sys

from tests.support.builders import ROOT

FOLDER = ROOT / "docs/studies"
STUDIES = sorted(path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text())
# One process for all of them: torch, which takes seconds to import, is imported once, the modules of `docs` for each.
START = f"""
import runpy, sys

others = sys.path[1:]

def start(name, folder, run, what):
    for module in [each for each in sys.modules if each.partition(".")[0] == "docs"]:
        del sys.modules[module]
    sys.path[:], sys.argv[:] = [folder, *others], [name, "--help"]
    try:
        run(what, run_name="__main__")
    except SystemExit as end:
        print("ended", name, end.code or 0)

for name in {STUDIES}:
    start(name, {str(FOLDER)!r}, runpy.run_path, f"{FOLDER}/{{name}}.py")
start("module", {str(ROOT)!r}, runpy.run_module, "docs.studies.forgetting")
"""


def test_every_study_starts() -> None:
    assert len(STUDIES) == 13
    command = [sys.executable, "-c", START]
    started = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env={"PATH": "/usr/bin:/bin"})
    assert started.returncode == 0, started.stderr
    ended = [line for line in started.stdout.splitlines() if line.startswith("ended")]
    assert ended == [f"ended {name} 0" for name in (*STUDIES, "module")], started.stderr
    assert started.stdout.count("Usage:") == len(ended)
    assert started.stdout.count("Run the study") >= 2
