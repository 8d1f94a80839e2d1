"""What a fit that was killed while it wrote its metrics has left is no obstacle to the one that goes on."""

from lightning_modules.run_folder import by_epoch


def test_empty_files_and_cut_lines_say_nothing(tmp_path):
    (tmp_path / "metrics-1.csv").write_text("")
    (tmp_path / "metrics-2.csv").write_text("epoch,step,train/loss\n0,3,1.5\n1,7")
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,val/acc\n1,7,1.25,\n1,7,,0.5\n")
    assert by_epoch(tmp_path) == {"train/loss": {0: 1.5, 1: 1.25}, "val/acc": {1: 0.5}}


def test_a_fit_without_an_epoch_has_none(tmp_path):
    (tmp_path / "metrics.csv").write_text("")
    assert by_epoch(tmp_path) == {}
