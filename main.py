"""The command line: ``python main.py fit|validate|test|predict --config configs/NAME.yaml``."""

import logging
import os
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import yaml
from filelock import FileLock
from jsonargparse import Namespace
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from attacks.callback import AttackSuite
from attacks.evaluator import Evaluator
from datamodules import Images
from interpret.callback import Interpretation
from lightning_modules import Regime
from lightning_modules.averaging import Averaging, check_decay
from lightning_modules.flavours import Expansion, Section, expansion
from lightning_modules.on_demand import (
    COMPLETE,
    LOCK,
    RUN_FOLDER,
    checkpoint_in,
    command,
    effective_config,
    name_of,
    place,
    train_once,
)
from lightning_modules.parser import Parser, sentence
from lightning_modules.run_folder import RunFolder, loggers, new_folder, worth_testing
from networks.checkpoint import first_line
from shift.callback import Shift

for message in (
    "(?s).*JsonargparseDeprecationWarning",  # Lightning's own calls, which our bound on jsonargparse keeps working
    "(?s).*was deprecated in v4.*v5.0.0",
    ".*LeafSpec.* is deprecated",  # Lightning's own call of torch
    "Experiment logs directory .* is not empty",  # a run's folder holds more than its logger's file
    "Checkpoint directory .* is not empty",  # a fit that goes on does so in its own folder
    "The dirpath has changed",  # a test has a folder of its own
    ".*tensorboardX",
):
    warnings.filterwarnings("ignore", message)
logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())


class CLI(LightningCLI):
    """LightningCLI with a run folder, teachers on demand, and evaluators after ``fit`` and in ``test``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="The run's name; default: its config's.")
        parser.add_argument("--runs", type=str, default="runs", help="Where runs are kept.")
        parser.add_argument("--wandb", type=bool, default=True, help="Log to W&B: online if logged in, else offline.")
        parser.add_argument("--train_teacher", type=bool, default=False, help="Train a missing teacher first.")
        parser.add_argument("--ema", type=float | None, default=None, help="Decay of an average of the weights.")
        parser.add_argument("--flavour", type=Section | None, default=None, help="One of the 20 flavours, by its name.")
        parser.add_lightning_class_args(AttackSuite, "suite")
        parser.add_lightning_class_args(Interpretation, "interpret")
        parser.add_lightning_class_args(Shift, "shift")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "best",
                "checkpoint.mode": "max",
                "checkpoint.enable_version_counter": False,  # the newer file replaces the older in one step
            }
        )
        # One value only, to the model itself: links into nested arguments are lost from the checkpoint.
        parser.link_arguments("data.facts", "model.init_args.facts", lambda facts: facts.to_dict(), "instantiate")
        parser.link_arguments("model.monitor", "checkpoint.monitor", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        # A checkpoint runs no code unless its owner says so; the suite's table says what Lightning's would.
        parser.set_defaults({"weights_only": True} | ({"verbose": False} if subcommand == "test" else {}))
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        words = sys.argv[1:] if args is None else args
        verb = next((number for number, word in enumerate(words, 1) if word in self.subcommands()), len(words))
        self.flavour, behind = self._spelt_out(words[verb:])
        self.config = parser.parse_args([*words[:verb], *behind])

    def _spelt_out(self, words: list[str]) -> tuple[Expansion | None, list[str]]:
        """A subcommand's arguments with the flavour that they name, if any, spelt out among them."""
        reader = self.init_parser(exit_on_error=False)
        reader.add_argument("--flavour", type=Section | None)
        try:
            flavour = expansion(words, reader)
        except ArgumentError as error:
            raise ValueError(f"flavour cannot be read: {sentence(str(error))}") from error
        return flavour, words if flavour is None else flavour.words(words)

    def _parse_ckpt_path(self) -> None:
        # A checkpoint's hyper-parameters win over the command line, which spares repeating the architecture; but a
        # teacher's file may have moved since, so one that the command line names stays.
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        teacher = config.model.init_args.get("teacher") if config.model else None
        if config.ckpt_path is None and subcommand != "fit":
            raise ValueError(
                f"{subcommand} needs trained weights: give --ckpt_path runs/<name>/<time>/checkpoints/best.ckpt."
            )
        try:
            super()._parse_ckpt_path()
        except (EOFError, KeyError, OSError, RuntimeError, UnpicklingError) as error:
            raise ValueError(f"{config.ckpt_path} cannot be read as a checkpoint ({first_line(error)}).") from error
        if teacher is not None and (teacher.checkpoint is not None or teacher.module is not None):
            self.config[subcommand].model.init_args.teacher = teacher

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        check_decay(config.ema)
        if self.flavour is not None:
            model, called = self._plain(config)["model"], str(self.flavour.flavour)
            if self.subcommand == "fit":
                self.flavour.require(model)
            elif self.flavour.fault(model) and config.name == called:
                config.name = None  # the checkpoint is another's
        given = [str(path) for path in config.get("config") or [] if path]  # None: what was given in a file's place
        config.name = config.name or (Path(given[0]).stem if given else self.subcommand)
        if Path(config.name).name != config.name:
            raise ValueError(f"A run's name becomes a folder in --runs, got {config.name!r}.")
        self.folder = self._folder(config)
        os.environ[RUN_FOLDER] = str(self.folder)
        config.checkpoint.dirpath = str(self.folder / "checkpoints")

    def _folder(self, config: Namespace) -> Path:
        """The run's folder: a new one, unless a fit resumes in its own or a launcher's process joins it."""
        if RUN_FOLDER in os.environ:
            return Path(os.environ[RUN_FOLDER])
        resumed = Path(config.ckpt_path).parent.parent if self.subcommand == "fit" and config.ckpt_path else None
        if resumed is not None and (resumed / "config.yaml").is_file():
            return resumed
        return new_folder(Path(config.runs), config.name, str(self.subcommand))

    def _resolve_teacher(self, config: Namespace) -> None:
        """Finds or trains the teacher that the student's config names by its own config.

        The student has been built by now, so that its faults do not cost a teacher's training; the Trainer has not.
        """
        _ = self.datamodule.omitted  # refuses a class that does not exist
        teacher = config.model.init_args.get("teacher")
        if teacher is None or teacher.config is None or teacher.checkpoint is not None or teacher.module is not None:
            return
        student = self._plain(config)
        effective = effective_config(self._parse_fit, student)
        runs, name = Path(config.runs), name_of(effective, teacher.config)
        found = place(effective, runs, name)
        if config.train_teacher:
            checkpoint = train_once(effective, runs, name)
        elif found.exists():
            checkpoint = checkpoint_in(found)
        else:
            raise FileNotFoundError(
                f"The teacher {name} of {teacher.config} does not exist yet. Set --train_teacher true, or train it "
                f"with: {command(self._parse_fit, student)}, then name --model.teacher.checkpoint."
            )
        # Where it is, for the run's config, for this run, and for the student's checkpoint.
        teacher.checkpoint = self.model.source.checkpoint = str(checkpoint)
        self.model.hparams["teacher"]["checkpoint"] = str(checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config, init = self.config[self.subcommand], self.config_init[self.subcommand]
        self._resolve_teacher(config)
        callbacks = [*(init.trainer.callbacks or [])]
        # A fit is repeated from its beginning, the others with the weights that they were given.
        again = {"ckpt_path": None} if self.subcommand == "fit" else {}
        saved = yaml.safe_dump(self._plain(config) | again, sort_keys=False)
        callbacks.append(RunFolder(self.folder, saved, str(self.subcommand)))
        if config.trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(RichProgressBar())
        if self.subcommand == "fit" and config.ema is not None:
            callbacks.append(Averaging(config.ema))
        # Lightning's own save_last only follows the best; a fit that is stopped goes on from the last epoch.
        last = ModelCheckpoint(
            config.checkpoint.dirpath, "last", enable_version_counter=False, save_on_train_epoch_end=True
        )
        kwargs |= {"callbacks": [*callbacks, last], "default_root_dir": self.folder}
        if config.trainer.logger is None and not config.trainer.fast_dev_run:
            kwargs["logger"] = loggers(self.folder, config.name, config.wandb)
        return super().instantiate_trainer(**kwargs)

    def before_test(self) -> None:
        self._judge(Path(self.config[self.subcommand].ckpt_path))

    def after_fit(self) -> None:
        """Tests the best weights and, where they are others, the last ones: Lightning logs nothing after a fit."""
        # Processes that another launcher started know the run's folder from the first of them.
        self.folder = Path(self.trainer.strategy.broadcast(str(self.folder)))
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            # One batch's worth: what a trial run of a student distils from.
            self.trainer.save_checkpoint(self.folder / "checkpoints" / "best.ckpt")
        tested = worth_testing(self.folder)
        for path in tested:
            self._judge(path, silent=path != tested[-1])
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False, weights_only=True)
        if self.trainer.is_global_zero:
            (self.folder / COMPLETE).touch()
        rank_zero_info(f"Everything of this run: {self.folder}")

    def _judge(self, checkpoint: Path, silent: bool = False) -> None:
        """Tells the evaluators which weights they judge, and whether others will follow."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluator):
                callback.checkpoint, callback.silent = checkpoint.stem, silent

    def _plain(self, config: Namespace, subcommand: str | None = None) -> dict[str, Any]:
        """A subcommand's config as plain values, as a YAML file would hold it."""
        parser = self._parser(subcommand or self.subcommand)
        return yaml.safe_load(parser.dump(config, skip_unset=False, skip_link_targets=True))

    def _parse_fit(self, arguments: list[str]) -> dict[str, Any]:
        """A fit's config as plain values; ValueError for one that is none."""
        flavour, words = self._spelt_out(arguments)
        parser = self._parser("fit")
        parser.exit_on_error = False
        try:
            config = self._plain(parser.parse_args(words), "fit")
        except ArgumentError as error:
            raise ValueError(sentence(str(error))) from error
        finally:
            parser.exit_on_error = True
        if flavour is not None:
            flavour.require(config["model"])
        return config


def main(args: Sequence[str] | None = None) -> CLI:
    """Runs a command as from the command line; errors are raised.

    Args:
        args: the words behind ``python main.py``; None takes those of this process.

    Returns:
        The command line with its ``trainer``, ``model`` and ``datamodule``.
    """
    inherited = os.environ.get(RUN_FOLDER)
    lock = os.environ.pop(LOCK, None)  # not for the processes that a strategy launches
    with FileLock(lock) if lock else nullcontext():
        try:
            return _run(args)
        except SIGTERMException as error:
            raise SystemExit(143) from error  # Lightning's says 0, as if all had been done
        finally:
            if "wandb" in sys.modules:
                sys.modules["wandb"].finish()  # the next run of this process is one of its own
            # The folder is named to the processes that a strategy launches, not to this process's next run.
            folder = os.environ.pop(RUN_FOLDER, None)
            if inherited is not None:
                os.environ[RUN_FOLDER] = inherited
            elif folder and Path(folder).is_dir() and not any(Path(folder).iterdir()):
                os.removedirs(folder)  # a run that was refused leaves nothing behind


def _run(args: Sequence[str] | None) -> CLI:
    return CLI(
        Regime,
        Images,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        save_config_callback=None,
        parser_class=Parser,
        # No attack works under inference mode: its tensors cannot be differentiated. A batch is one process's, so a
        # recipe would change with the number of devices found.
        trainer_defaults={"inference_mode": False, "enable_model_summary": False, "devices": 1},
        args=None if args is None else list(args),
    )


# What a person can mend: one sentence. Anything else is a fault of ours, and shows where it happened.
MENDABLE = (ValueError, OSError, FloatingPointError, MisconfigurationException)

if __name__ == "__main__":
    try:
        main()
    except MENDABLE as error:
        if os.environ.get("TEMPERED_TRACEBACK"):
            raise
        sys.exit(f"Error: {sentence(str(error))} (TEMPERED_TRACEBACK=1 shows where.)")
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from what is kept.")
