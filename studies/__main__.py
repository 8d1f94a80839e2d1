"""Grids of runs by one command: ``python -m studies plan|run|status|report|board NAME``."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from studies import drive, layout, overview
from studies.cells import Study
from studies.disk import WANDB
from studies.grid import RECIPES, find, read
from studies.plan import Plan, plan


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m studies", description=__doc__, allow_abbrev=False)
    verbs = found.add_subparsers(dest="verb", required=True, metavar="plan|run|status|report|board")
    says = {
        "plan": "what there is to run, what is there already, and about how long the rest takes",
        "run": "run what is missing, and write the report",
        "status": "what is done, running, failed; at any time",
        "report": "write the report from what is there",
        "board": "make the study's dashboard at W&B",
    }
    for verb, help in says.items():
        sub = verbs.add_parser(verb, help=help, description=help, allow_abbrev=False)
        sub.add_argument("name", help="a grid in configs/studies, or a grid file")
        sub.add_argument("--recipe", choices=RECIPES, default="paper", help="the paper's (default), short, or quick")
        sub.add_argument("--quick", dest="recipe", action="store_const", const="quick", help="the recipe quick")
        sub.add_argument("--runs", type=Path, default=Path("runs"), help="where runs are kept (default runs)")
        sub.add_argument(
            "--any-code", action="store_true", help="finished runs count though the code that made them has changed"
        )
        if verb in ("plan", "run"):
            default = "laptop" if verb == "run" else None
            sub.add_argument("--profile", default=default, help="laptop (default), slurm, or a profile's folder")
        if verb == "run":
            sub.add_argument("--wandb", action="store_true", help="log runs and report to W&B, as one group")
    return found


def main(words: list[str] | None = None) -> int:
    """Does what the words say; 1 where runs failed, or are missing behind ``run``."""
    arguments = parser().parse_args(words)
    study = read(find(arguments.name), arguments.recipe)
    found = plan(study, arguments.runs, arguments.any_code)
    if arguments.verb in ("plan", "run"):
        _check(study)
    if arguments.verb == "plan":
        overview.show_plan(found)
        if arguments.profile:
            found.write()
            drive.dry_run(found, arguments.profile)
        return 0
    if arguments.verb == "status":
        return overview.show_status(found)
    if arguments.verb == "board":
        from studies import board  # seconds of imports, as below

        print(board.publish(found))
        return 0
    ended = 0
    if arguments.verb == "run":
        found.write()
        found.forget()
        if arguments.wandb:
            os.environ |= {WANDB: "true", "WANDB_RUN_GROUP": study.called, "WANDB_TAGS": f"{study.name},{study.recipe}"}
        ended = drive.run(found, arguments.profile)
    _report(found, arguments.verb == "run" and arguments.wandb)
    return overview.show_outcome(found, ended) if arguments.verb == "run" else 0


def _check(study: Study) -> None:
    """Refuses before hours of runs what their report could not show."""
    from studies import drawings

    layout.check(study)
    drawings.check(study)


def _report(found: Plan, logged: bool) -> None:
    """Writes the report, and logs it to W&B where that is asked for."""
    # What draws and computes needs seconds to import; a plan does not wait for it.
    from studies.gather import Results
    from studies.report import write

    results = Results(found)
    path = write(results, shlex.join(["python", "-m", "studies", *sys.argv[1:]]), found.folder / "report")
    print(f"Report: {path}")
    if logged:
        from studies import board

        board.log(results, path)


if __name__ == "__main__":
    try:
        status = main()
    except (ValueError, OSError) as error:
        if os.environ.get("TEMPERED_TRACEBACK"):
            raise
        sys.exit(f"Error: {error} (TEMPERED_TRACEBACK=1 shows where.)")
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from what is kept.")
    sys.exit(status)
