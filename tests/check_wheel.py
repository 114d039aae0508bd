"""Builds the wheel and imports from it in a fresh environment: what is not declared is missing there."""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 12 * 1024 * 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, str(ROOT))
        (wheel,) = Path(folder).glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        for needed in (
            "stateset_agents/seed_policy/model.safetensors",
            "stateset_agents/tools/shop/schema.sql",
            "stateset_agents/tools/rules.yaml",
            "stateset_agents/tools/wording/pt/held_out.yaml",
            "stateset_agents/seed_policy/chat_template.jinja",
            "stateset_agents/server/engine/app.py",
        ):
            assert needed in names, f"{needed} is missing from the wheel"
        assert wheel.stat().st_size < LIMIT, f"the wheel has {wheel.stat().st_size} bytes"
        fresh = Path(folder) / "venv"
        venv.create(fresh, with_pip=True)
        python = str(fresh / "bin" / "python")
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel))
        run(python, "-m", "pip", "install", "--quiet", "pydantic", "typer", "rich", "pyyaml")
        code = (
            "import stateset_agents; from stateset_agents.tools.scenarios.generator import scenarios, score_acts;"
            "s = next(scenarios(seed=1, split='train')); assert score_acts(s, s.plan).success"
        )
        run(python, "-c", code, cwd=folder)
        run(str(fresh / "bin" / "stateset-agents"), "version", cwd=folder)
    print("the wheel is whole")


def run(*command: str, cwd: str | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
