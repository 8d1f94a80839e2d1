"""Reads what a run logged to W&B offline."""

import json
import struct
from collections import defaultdict


def records(path):
    """What a run logged offline: protocol buffers in the framing of LevelDB's log, behind 7 bytes of W&B's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        _, size, kind = struct.unpack_from("<IHB", data, at)  # checksum; kind: 1 whole, 2 first, 3 middle, 4 last
        if left < 7 or kind == 0:
            at += left
            continue
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


class Logged:
    """A run that was logged offline: its description, config and summary, and all that was ever logged under a key."""

    def __init__(self, folder):
        (path,) = folder.glob("*.wandb")
        self.files, self.summary, self.history = folder / "files", {}, defaultdict(list)
        for record in records(path):
            if record.HasField("run"):
                self.run = record.run
                self.config = {each.key: json.loads(each.value_json) for each in record.run.config.update}
            for each in record.history.item:
                self.history["/".join([each.key, *each.nested_key]).strip("/")].append(json.loads(each.value_json))
            for each in record.summary.update:
                self.summary[each.key or ".".join(each.nested_key)] = json.loads(each.value_json)

    def file(self, key):
        """What was logged under a key as a file."""
        return self.files / self.history[f"{key}/path"][-1]

    @property
    def described(self):
        return self.run.display_name, self.run.run_group, self.run.job_type, [*self.run.tags], self.run.project
