"""Hands a plan to Snakemake and watches what comes of it."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich import get_console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from studies.plan import Plan, finished

WORKFLOW = Path(__file__).parent / "workflow"
PROFILES = WORKFLOW / "profiles"


def command(plan: Plan, profile: str, *more: str) -> list[str]:
    """Snakemake's command for a plan.

    Args:
        plan: a plan that has been written.
        profile: ``laptop``, ``slurm``, or a folder with a ``config.yaml`` of Snakemake's.
        more: further arguments.

    Raises:
        FileNotFoundError: where Snakemake is not installed, or there is no such profile.
    """
    if set("{}") & set(str(plan.folder.absolute())):
        raise ValueError(f"Braces are wildcards to Snakemake: give --runs a folder without them, not {plan.runs}.")
    beside = Path(sys.executable).with_name("snakemake")
    program = str(beside) if beside.exists() else shutil.which("snakemake")
    if program is None:
        raise FileNotFoundError("A study is run by Snakemake, which is not installed: pip install -e '.[study]'.")
    folder = PROFILES / profile if (PROFILES / profile).is_dir() else Path(profile)
    if not (folder / "config.yaml").is_file():
        known = ", ".join(sorted(path.name for path in PROFILES.iterdir()))
        raise FileNotFoundError(f"There is no profile {profile}: name one of {known}, or a folder with a config.yaml.")
    return [
        program,
        *("--snakefile", str(WORKFLOW / "Snakefile"), "--directory", str(plan.folder.absolute())),
        *("--workflow-profile", str(folder.absolute())),
        # A killed Snakemake leaves its lock behind; ours, of every run, goes with the process.
        *("--nolock", "--rerun-incomplete", "--rerun-triggers", "mtime"),
        *more,
        *("--config", f"plan={json.dumps(str(plan.file.absolute()))}"),  # which Snakemake reads as YAML
    ]


def dry_run(plan: Plan, profile: str) -> None:
    """Prints the jobs that Snakemake would run.

    Raises:
        ChildProcessError: where it refuses the graph or the profile.
    """
    done = subprocess.run(command(plan, profile, "--dry-run"), capture_output=True, text=True, check=False)
    get_console().print(done.stdout.rstrip(), markup=False, highlight=False)
    if done.returncode:
        raise ChildProcessError(f"Snakemake refuses the plan: {done.stderr.strip()}")


def run(plan: Plan, profile: str) -> int:
    """Runs what is missing and shows how many runs are complete; Snakemake's exit status.

    It goes on behind a job that fails, and its own words are kept in ``logs/snakemake.log``.
    """
    log = plan.folder / "logs" / "snakemake.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    cells = plan.cells.values()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with log.open("w") as file, Progress(*columns, console=get_console()) as progress:
        process = subprocess.Popen(command(plan, profile), stdout=file, stderr=subprocess.STDOUT)
        task = progress.add_task(plan.study.name, total=len(cells))
        try:
            while process.poll() is None:
                progress.update(task, completed=finished(cells), description=_said(plan))
                time.sleep(0.5)
        except BaseException:
            process.terminate()  # it ends its jobs; their runs go on from where they were
            process.wait()
            raise
        progress.update(task, completed=finished(cells), description=_said(plan))
    return process.returncode


def _said(plan: Plan) -> str:
    failed = sum(planned.failed.exists() for planned in plan.cells.values())
    return escape(plan.study.name) + (f" ({failed} failed)" if failed else "")
