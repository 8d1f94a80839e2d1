"""What a worker does around the runs of a study."""

import subprocess
import sys

from studies.worker import printing_to


def test_what_is_printed_goes_to_the_log_alone(tmp_path, capfd):
    log = tmp_path / "run.log"
    for _ in range(2):
        with printing_to(log):
            print("from here")
            subprocess.run([sys.executable, "-c", "import sys; print('from there', file=sys.stderr)"], check=True)
    print("afterwards")
    assert sorted(log.read_text().splitlines()) == ["from here", "from here", "from there", "from there"]
    assert capfd.readouterr() == ("afterwards\n", "")
